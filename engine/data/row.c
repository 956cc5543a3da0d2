#include "engine/data/row.h"
