#include "engine/text/chat.h"
