/* family.c - the registry of architectures. */
#include "engine/model/family.h"
#include "engine/base/buf.h"
#include "engine/model/text.h"
#include "family_list.h"

#define GD_FAMILY(name) extern const struct gd_family gd_family_##name;
GD_FAMILY_LIST
#undef GD_FAMILY
#define GD_FAMILY(name) &gd_family_##name,
static const struct gd_family *const families[] = {GD_FAMILY_LIST};
#undef GD_FAMILY

/* Families may share an architecture's name: those after the first are not listed again. */
static const char *name_of(size_t index, bool gguf)
{
    const char *name = gguf ? families[index]->gguf : families[index]->model_type;
    for (size_t i = 0; gguf && name != NULL && i < index; i++)
        if (families[i]->gguf != NULL && strcmp(families[i]->gguf, name) == 0)
            return NULL;
    return name;
}

static bool find(const struct gd_family **out, const char *what, const char *name, bool gguf, struct gd_error *err)
{
    struct gd_buf known;
    for (size_t i = 0; i < GD_COUNT(families); i++) {
        const char *each = name_of(i, gguf);
        *out = families[i];
        if (each != NULL && strcmp(name, each) == 0)
            return true;
    }
    gd_buf_init(&known, 1024);
    for (size_t i = 0; i < GD_COUNT(families); i++)
        if (name_of(i, gguf) != NULL)
            gd_buf_printf(&known, "%s%s", known.length > 0 ? ", " : "", name_of(i, gguf));
    gd_fail_param(err, GD_UNSUPPORTED, what, "%s \"%s\" is not supported; supported are %s", what,
                  gd_show_text(name).text, known.data);
    gd_buf_release(&known);
    return false;
}

size_t gd_family_stem(const struct gd_family *family)
{
    static const char *const ends[] = {"For", "LMHeadModel"};
    for (size_t i = 0; i < GD_COUNT(ends); i++) {
        const char *end = strstr(family->class_name, ends[i]);
        if (end != NULL)
            return (size_t)(end - family->class_name);
    }
    return strlen(family->class_name);
}

bool gd_family_find(const struct gd_family **out, const char *model_type, struct gd_error *err)
{
    return find(out, "model_type", model_type, false, err);
}

bool gd_family_find_gguf(const struct gd_family **out, const char *architecture, bool experts, struct gd_error *err)
{
    if (!find(out, "general.architecture", architecture, true, err))
        return false;
    for (size_t i = 0; i < GD_COUNT(families); i++)
        if (families[i]->gguf != NULL && strcmp(families[i]->gguf, architecture) == 0 && (families[i]->defaults.experts > 0) == experts) {
            *out = families[i];
            return true;
        }
    return gd_fail(err, GD_UNSUPPORTED, "%s models with experts are not supported in GGUF", architecture);
}
