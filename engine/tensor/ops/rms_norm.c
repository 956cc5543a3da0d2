#include "engine/tensor/op.h"

const struct gd_op gd_op_rms_norm = {.name = "rms_norm"};
