#include "engine/tensor/op.h"

const struct gd_op gd_op_wear_lowrank = {.name = "wear_lowrank"};
