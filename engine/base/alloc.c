#include "engine/base/alloc.h"
