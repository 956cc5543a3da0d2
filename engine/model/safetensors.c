#include "engine/model/safetensors.h"
