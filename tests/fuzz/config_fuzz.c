/* config.json of every family, as itself and as the generation config beside it. */
#include "engine/model/config.h"
#include "tests/fuzz/fuzz.h"

#include <math.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct gd_error err = {0};
    struct gd_model_config config;
    cJSON *json = gd_json_parse((const char *)data, size, GD_MODEL_CONFIG_BYTES_MAX, &err);
    if (json != NULL && gd_model_config_from_json(&config, json, size % 2 == 0 ? json : NULL, &err)) {
        for (int j = 0; j < gd_model_frequencies(&config); j++)
            if (!isfinite(config.inv_freq[j]))
                abort();
        if (config.layers > GD_LAYERS_MAX || config.heads % config.kv_heads != 0 || config.rotary_dim > config.head_dim ||
            !(config.attention_scale > 0) || config.eos_count > GD_EOS_MAX)
            abort();
        gd_model_config_release(&config);
    } else if (err.message[0] == '\0')
        abort();
    cJSON_Delete(json);
    return 0;
}
