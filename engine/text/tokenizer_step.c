#include "engine/text/tokenizer_step.h"
#include "engine/base/alloc.h"

#include <string.h>

bool gd_steps_run(const struct gd_steps *steps, struct gd_flow *flow, struct gd_regex_run *regex, struct gd_error *err)
{
    bool ok = true;
    for (int i = 0; i < steps->count && ok; i++) {
        const struct gd_step *step = &steps->step[i];
        ok = step->kind < GD_STEP_SPLIT ? gd_step_normalize(step, flow, regex, err)
                                        : gd_step_split(step, flow, regex, err);
    }
    return ok;
}

void gd_steps_release(struct gd_steps *steps)
{
    for (int i = 0; i < steps->count; i++) {
        gd_regex_destroy(steps->step[i].regex);
        gd_free(steps->step[i].text);
        if (steps->step[i].kept != NULL)
            gd_added_release(steps->step[i].kept);
        gd_free(steps->step[i].kept);
    }
    memset(steps, 0, sizeof(*steps));
}

void gd_steps_describe(const struct gd_steps *steps, struct gd_buf *out)
{
    for (int i = 0; i < steps->count; i++) {
        const struct gd_step *step = &steps->step[i];
        gd_buf_printf(out, "step %d %d %d%d%d%d%d%d %d %lld text %zu:", (int)step->kind, (int)step->behavior, step->invert,
                      step->left, step->right, step->squeeze, step->escape, step->split, (int)step->prepend, (long long)step->characters, step->text_length);
        gd_buf_append(out, step->text_length > 0 ? step->text : "", step->text_length);
        const char *pattern = step->regex != NULL ? gd_regex_source(step->regex) : "";
        gd_buf_printf(out, " pattern %zu:", strlen(pattern));
        gd_buf_append_text(out, pattern);
        gd_buf_append_char(out, '\n');
    }
}
