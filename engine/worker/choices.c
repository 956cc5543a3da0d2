#include "engine/worker/choices.h"

#include <string.h>

bool gd_choices_encode(struct gd_choices *choices, const struct gd_tokenizer *tokenizer, const cJSON *list,
                       struct gd_sampling *sampling, struct gd_error *err)
{
    const cJSON *choice;
    int count = 0, longest = 0;
    choices->tokens = (struct gd_tokens){0};
    if (list == NULL || cJSON_IsNull(list))
        return true;
    if (!cJSON_IsArray(list) || list->child == NULL || cJSON_GetArraySize(list) > GD_OUTPUTS_MAX)
        return gd_fail_param(err, GD_INVALID, "choices", "choices must be a list of 1 to %d strings", GD_OUTPUTS_MAX);
    choices->begin[0] = 0;
    cJSON_ArrayForEach(choice, list)
    {
        if (!cJSON_IsString(choice) || choice->valuestring[0] == '\0')
            return gd_fail_param(err, GD_INVALID, "choices", "choices must hold strings that are not empty");
        if (!gd_tokenizer_encode(tokenizer, choice->valuestring, strlen(choice->valuestring), GD_SPECIAL_AS_TEXT, false,
                                 &choices->tokens, err))
            return false;
        choices->begin[++count] = choices->tokens.count;
        if (choices->begin[count] - choices->begin[count - 1] > longest)
            longest = choices->begin[count] - choices->begin[count - 1];
    }
    sampling->output_ids = choices->tokens.ids;
    sampling->output_begin = choices->begin;
    sampling->output_count = count;
    sampling->max_tokens = longest + 1; /* an end where an output begins another */
    return true;
}

void gd_choices_release(struct gd_choices *choices)
{
    gd_tokens_release(&choices->tokens);
}
