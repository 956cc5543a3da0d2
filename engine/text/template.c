#include "engine/text/template.h"
