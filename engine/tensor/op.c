#include "engine/tensor/op.h"
