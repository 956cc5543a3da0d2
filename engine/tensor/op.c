#include "engine/tensor/op.h"
#include "op_list.h"
#include <stdlib.h>

#define GD_OP(name) extern const struct gd_op gd_op_##name;
GD_OP_LIST
#undef GD_OP

#define GD_OP(name) &gd_op_##name,
const struct gd_op *const gd_op_table[] = {GD_OP_LIST};
#undef GD_OP

const int gd_op_count = (int)GD_COUNT(gd_op_table);

static int compare_name(const void *name, const void *entry)
{
    return strcmp(name, (*(const struct gd_op *const *)entry)->name);
}

const struct gd_op *gd_op_find(const char *name)
{
    const struct gd_op *const *found =
        bsearch(name, gd_op_table, GD_COUNT(gd_op_table), sizeof(gd_op_table[0]), compare_name);
    return found ? *found : NULL;
}
