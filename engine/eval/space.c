#include "engine/eval/space.h"

#include <utf8proc.h>

size_t gd_space_skip(const char *text, bool *is_space)
{
    utf8proc_int32_t code;
    utf8proc_ssize_t used = utf8proc_iterate((const utf8proc_uint8_t *)text, -1, &code);
    if (used < 1) {
        *is_space = false;
        return 1;
    }
    utf8proc_category_t category = utf8proc_category(code);
    *is_space = (code >= 0x09 && code <= 0x0D) || (code >= 0x1C && code <= 0x1F) || code == 0x85 ||
                category == UTF8PROC_CATEGORY_ZS || category == UTF8PROC_CATEGORY_ZL || category == UTF8PROC_CATEGORY_ZP;
    return (size_t)used;
}
