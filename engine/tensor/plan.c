#include "engine/tensor/plan.h"
