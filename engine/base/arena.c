#include "engine/base/arena.h"
