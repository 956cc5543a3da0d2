#include "engine/tensor/op.h"

const struct gd_op gd_op_rms_norm_grad = {.name = "rms_norm_grad"};
