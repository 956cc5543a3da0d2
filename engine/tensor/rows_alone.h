/*
 * rows_alone.h - whether a row's product depends on the rows beside it.
 *
 * Why      Jobs that share a pass must get the bits that each gets alone. A library may add up in another order where there are
 *          more rows; that is looked at where it matters, on the processor at hand.
 * Memory   The call's own.
 * Threads  engine thread
 * Errors   those of gd_weight_multiply
 * Limits   none
 * Life     before jobs share a pass
 */
#ifndef GD_TENSOR_ROWS_ALONE_H
#define GD_TENSOR_ROWS_ALONE_H

#include "engine/tensor/weight.h"

/* Multiplies parts of so many rows each, drawn at random, by the prepared weight, once part by part and once together. *same:
 * all bits are. */
GD_MUST_CHECK bool gd_rows_alone(const struct gd_weight *weight, bool back, enum gd_dtype dtype, const int64_t *rows, int count,
                                 bool *same, struct gd_error *err);

#endif
