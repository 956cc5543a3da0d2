#include "server/metadata.h"

#include <stdio.h>

#define METADATA_PAIRS_MAX 16
#define METADATA_KEY_MAX 64       /* characters */
#define METADATA_VALUE_MAX 512

static size_t characters(const char *text)
{
    size_t count = 0;
    for (; *text != '\0'; text++)
        count += ((unsigned char)*text & 0xc0) != 0x80;
    return count;
}

bool gd_metadata_read(const cJSON *body, char **out, struct gd_error *err)
{
    const cJSON *metadata = NULL, *pair;
    if (!gd_json_get_object(body, "", "metadata", false, &metadata, err))
        return false;
    if (metadata == NULL)
        return true;
    int count = cJSON_GetArraySize(metadata);
    if (count > METADATA_PAIRS_MAX)
        return gd_fail_param(err, GD_INVALID, "metadata", "metadata has %d pairs; it may have up to %d", count,
                             METADATA_PAIRS_MAX);
    cJSON_ArrayForEach(pair, metadata) {
        char param[96];
        snprintf(param, sizeof param, "metadata.%.80s", pair->string);
        if (characters(pair->string) > METADATA_KEY_MAX)
            return gd_fail_param(err, GD_INVALID, param, "the key has %zu characters; it may have up to %d",
                                 characters(pair->string), METADATA_KEY_MAX);
        if (!cJSON_IsString(pair))
            return gd_fail_param(err, GD_INVALID, param, "%.80s must be a string", param);
        if (characters(pair->valuestring) > METADATA_VALUE_MAX)
            return gd_fail_param(err, GD_INVALID, param, "the value has %zu characters; it may have up to %d",
                                 characters(pair->valuestring), METADATA_VALUE_MAX);
    }
    *out = gd_json_print(metadata);
    return true;
}
