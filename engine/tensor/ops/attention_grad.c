#include "engine/tensor/op.h"

const struct gd_op gd_op_attention_grad = {.name = "attention_grad"};
