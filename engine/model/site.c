#include "engine/model/site.h"
