#include "engine/objective/objective.h"

#include "objective_list.h"

#include <string.h>

#define GD_OBJECTIVE(name) extern const struct gd_objective gd_objective_##name;
GD_OBJECTIVE_LIST
#undef GD_OBJECTIVE
#define GD_OBJECTIVE(name) &gd_objective_##name,
const struct gd_objective *const gd_objective_table[] = {GD_OBJECTIVE_LIST};
#undef GD_OBJECTIVE
const int gd_objective_count = (int)GD_COUNT(gd_objective_table);

const struct gd_objective *gd_objective_find(const char *name)
{
    for (int i = 0; i < gd_objective_count; i++)
        if (strcmp(gd_objective_table[i]->name, name) == 0)
            return gd_objective_table[i];
    return NULL;
}
