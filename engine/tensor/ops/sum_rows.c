#include "engine/tensor/op.h"

const struct gd_op gd_op_sum_rows = {.name = "sum_rows"};
