#include "engine/infer/engine.h"
