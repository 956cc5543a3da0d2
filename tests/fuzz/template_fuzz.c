/* Chat templates: what compiles renders, or fails, within its bounds; spans stay inside the text. */
#include "engine/text/template.h"
#include "tests/fuzz/fuzz.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct gd_error err = {0};
    struct gd_template *tmpl = NULL;
    static cJSON *variables;
    if (variables == NULL)
        variables = cJSON_Parse("{\"messages\": [{\"role\": \"system\", \"content\": \"s\"}, {\"role\": \"user\", \"content\": \"u\"},"
                                "{\"role\": \"assistant\", \"content\": null, \"tool_calls\": [{\"function\": {\"name\": \"f\", "
                                "\"arguments\": {\"x\": 1}}}]}], \"tools\": [], \"add_generation_prompt\": true, "
                                "\"bos_token\": \"<s>\", \"eos_token\": \"</s>\"}");
    if (!gd_template_compile(&tmpl, (const char *)data, size, &err))
        return 0;
    struct gd_buf out;
    struct gd_render_spans spans = {0};
    gd_buf_init(&out, 16 << 20);
    if (gd_template_render(tmpl, variables, &out, &spans, &err))
        for (int i = 0; i < 2 * spans.template_span_count; i++)
            if (spans.template_spans[i] < 0 || (size_t)spans.template_spans[i] > out.length)
                abort();
    gd_render_spans_release(&spans);
    gd_buf_release(&out);
    gd_template_destroy(tmpl);
    return 0;
}
