#include "engine/tensor/weight.h"
