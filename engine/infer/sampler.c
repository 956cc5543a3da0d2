#include "engine/infer/sampler.h"
