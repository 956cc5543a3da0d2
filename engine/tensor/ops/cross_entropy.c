#include "engine/tensor/op.h"

const struct gd_op gd_op_cross_entropy = {.name = "cross_entropy"};
