#include "engine/worker/protocol.h"
