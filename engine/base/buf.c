#include "engine/base/buf.h"
