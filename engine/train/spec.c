#include "engine/train/spec.h"
