#include "engine/base/fsio.h"
