#include "engine/tensor/tensor.h"
