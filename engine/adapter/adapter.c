#include "engine/adapter/adapter.h"
