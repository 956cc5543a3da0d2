#include "engine/tensor/graph.h"
