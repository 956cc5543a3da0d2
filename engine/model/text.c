/* text.c - names from hostile files, made fit for a message. */
#include "engine/model/text.h"
#include <inttypes.h>
#include <stdio.h>

struct gd_shown gd_show(const char *name, size_t length)
{
    struct gd_shown shown = {{0}};
    size_t used = 0;
    for (size_t i = 0; i < length; i++) {
        unsigned char byte = (unsigned char)name[i];
        bool plain = byte >= 0x20 && byte < 0x7f;
        if (used + 8 >= sizeof shown.text) { /* the longest escape, "..." and NUL */
            memcpy(shown.text + used, "...", 4);
            break;
        }
        int wrote = snprintf(shown.text + used, sizeof shown.text - used, plain ? "%c" : "\\x%02x", byte);
        used += (size_t)wrote;
    }
    return shown;
}

struct gd_shown gd_show_text(const char *name)
{
    return gd_show(name, strlen(name));
}

struct gd_shown gd_show_shape(const struct gd_tensor *tensor)
{
    struct gd_shown shown = {"["};
    size_t used = 1;
    for (int axis = 0; axis < tensor->rank; axis++)
        used += (size_t)snprintf(shown.text + used, sizeof shown.text - used, "%s%" PRId64, axis > 0 ? ", " : "",
                                 tensor->shape[axis]);
    snprintf(shown.text + used, sizeof shown.text - used, "]");
    return shown;
}

const char *gd_path_name(const char *path)
{
    const char *slash = strrchr(path, '/');
    return slash != NULL ? slash + 1 : path;
}

bool gd_bad_model(struct gd_error *err)
{
    if (err->code == GD_INVALID || err->code == GD_MISSING || err->code == GD_UNKNOWN_FIELD)
        err->code = GD_BAD_MODEL;
    return false;
}
