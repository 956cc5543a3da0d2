#include "engine/tensor/op.h"

const struct gd_op gd_op_linear_back = {.name = "linear_back"};
