#include "engine/tensor/op.h"

const struct gd_op gd_op_swiglu_grad = {.name = "swiglu_grad"};
