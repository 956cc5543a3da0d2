/* A training row: accepted rows have one of the two shapes, and the second answer of a pair has the first one's. */
#include "engine/data/row.h"
#include "tests/fuzz/fuzz.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct gd_error err = {0};
    struct gd_row row;
    if (gd_row_parse(&row, (const char *)data, size, 1, &err)) {
        if ((row.messages == NULL) == (row.prompt == NULL))
            abort();
        if (gd_row_is_pair(&row) && ((row.rejected_messages == NULL) != (row.messages == NULL) ||
                                     (row.rejected == NULL) != (row.prompt == NULL)))
            abort();
        gd_row_release(&row);
    } else if (err.param[0] == '\0' || err.message[0] == '\0') {
        abort();
    }
    return 0;
}
