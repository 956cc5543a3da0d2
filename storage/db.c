#include "storage/db.h"
