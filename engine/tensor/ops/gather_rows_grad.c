#include "engine/tensor/op.h"

const struct gd_op gd_op_gather_rows_grad = {.name = "gather_rows_grad"};
