#include "engine/tensor/op.h"

const struct gd_op gd_op_scale = {.name = "scale"};
