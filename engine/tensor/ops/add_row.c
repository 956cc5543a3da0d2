#include "engine/tensor/op.h"

const struct gd_op gd_op_add_row = {.name = "add_row"};
