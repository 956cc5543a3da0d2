#include "engine/base/error.h"
