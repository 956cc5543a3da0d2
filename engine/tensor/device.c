#include "engine/tensor/device.h"
