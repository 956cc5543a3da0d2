/*
 * oft.c - OFT (Qiu et al. 2023) as PEFT has it since 0.18: y = W (R^T x) + b, R block-diagonal with blocks of b rows, each made from a
 * skew-symmetric Q: the exact Cayley map (I - Q)(I + Q)^-1, or its Neumann series I + 2 Q + 2 Q^2 + ... with another sign of Q
 * (Qiu et al. 2025). oft_R holds the upper triangles, row by row, and starts at zero, so the start is the base. in / b times
 * b (b - 1) / 2 numbers a module, or b (b - 1) / 2 with block_share.
 */
#include "engine/adapter/build.h"
#include "engine/base/alloc.h"
#include "engine/tensor/cayley.h"
#include "engine/tensor/ops.h"

#include <stdio.h>
#include <string.h>

#define FIRST_MINOR 18 /* of PEFT 0.x, whose series this is */

static const struct gd_adapter_option options[] = {
    {.name = "r", .type = GD_OPTION_INT, .max = 65536,
     .help = "Blocks a module, instead of oft_block_size, which is then 0."},
    {.name = "oft_block_size", .type = GD_OPTION_INT, .max = 1024, .fallback = 32, .peft_fallback = 32,
     .help = "Rows of a block; divides the inputs of each module."},
    {.name = "block_share", .type = GD_OPTION_BOOL, .help = "One block for all of a module."},
    {.name = "use_cayley_neumann", .type = GD_OPTION_BOOL, .fallback = 1, .peft_fallback = 1,
     .help = "A series instead of the exact Cayley map."},
    {.name = "num_cayley_neumann_terms", .type = GD_OPTION_INT, .min = 2, .max = 64, .fallback = 5, .peft_fallback = 5,
     .help = "Terms of the series; more are nearer to a rotation."},
    {.name = "target_modules", .type = GD_OPTION_MODULES, .min = 1, .modules = "all-linear",
     .help = "Linear modules whose inputs are rotated: names, dotted suffixes, or \"all-linear\"."},
};

/* PEFT changed what these files mean, and says in them which version wrote them. */
static bool check_file(struct gd_adapter_config *config, const cJSON *json, struct gd_error *err)
{
    const cJSON *version = gd_json_find(json, "peft_version"), *series = gd_json_find(json, "use_cayley_neumann");
    int major = 0, minor = 0;
    if (!cJSON_IsNumber(gd_json_find(json, "oft_block_size")))
        return gd_fail_param(err, GD_UNSUPPORTED, "oft_block_size", "adapter_config.json has no oft_block_size: PEFT before 0.14 "
                             "wrote it, whose OFT is another; train it again");
    if (!cJSON_IsBool(series))
        return gd_fail_param(err, GD_UNSUPPORTED, "use_cayley_neumann", "adapter_config.json has no use_cayley_neumann, without which "
                             "the sign of the rotation is not known; add it as it was in training");
    bool known = cJSON_IsString(version) && sscanf(version->valuestring, "%d.%d", &major, &minor) == 2;
    if (cJSON_IsTrue(series) && (!known || (major == 0 && minor < FIRST_MINOR)))
        return gd_fail_param(err, GD_UNSUPPORTED, "peft_version", "adapter_config.json: use_cayley_neumann of PEFT %.20s is another "
                             "series than since 0.%d; train it again, or without use_cayley_neumann",
                             known ? version->valuestring : "before 0.18", FIRST_MINOR);
    return true;
}

/* The divisor of `in` nearest to `size`, the smaller of two: what PEFT takes silently. */
static int64_t nearest_divisor(int64_t in, int64_t size)
{
    if (size >= in)
        return in;
    int64_t higher = size, lower = size;
    while (in % higher != 0)
        higher++;
    while (in % lower != 0)
        lower--;
    return size - lower <= higher - size ? lower : higher;
}

/* Rows of a block; 0: the options do not fit the site. */
static int64_t block_of(const struct gd_graft *graft, const struct gd_site *site)
{
    int64_t r = (int64_t)gd_adapter_value(&graft->config, "r"), size = (int64_t)gd_adapter_value(&graft->config, "oft_block_size");
    if (graft->config.finished)
        return r > 0 ? site->in / nearest_divisor(site->in, r) : nearest_divisor(site->in, size);
    int64_t divisor = r > 0 ? r : size;
    return site->in % divisor != 0 ? 0 : r > 0 ? site->in / r : size;
}

static int terms_of(const struct gd_graft *graft)
{
    return gd_adapter_value(&graft->config, "use_cayley_neumann") != 0
               ? (int)gd_adapter_value(&graft->config, "num_cayley_neumann_terms") : 0;
}

static bool check_block(const struct gd_graft *graft, const struct gd_site *site, struct gd_error *err)
{
    bool by_count = gd_adapter_value(&graft->config, "r") > 0;
    const char *name = by_count ? "r" : "oft_block_size", *param = by_count ? "adapter.r" : "adapter.oft_block_size";
    int64_t size = block_of(graft, site);
    if (size >= 2)
        return true;
    return gd_fail_param(err, GD_INVALID, param, "%s %d does not split the %d inputs of %s into blocks of two and more: give a "
                         "divisor, or choose other target_modules", name, (int)gd_adapter_value(&graft->config, name), site->in,
                         site->name);
}

static bool create(struct gd_graft *graft, struct gd_error *err)
{
    const struct gd_site *sites;
    int site_count = gd_model_linear_sites(graft->model, &sites);
    bool shared = gd_adapter_value(&graft->config, "block_share") != 0, by_count = gd_adapter_value(&graft->config, "r") > 0;
    if (by_count == (gd_adapter_value(&graft->config, "oft_block_size") > 0))
        return gd_fail_param(err, GD_INVALID, "adapter.oft_block_size", by_count
                             ? "give r or oft_block_size, not both: the other one is 0"
                             : "oft_block_size is 0 and so is r: give one of them");
    if (gd_graft_choose(graft, GD_SITE_LINEAR, "target_modules", err) == 0)
        return false;
    for (int i = 0; i < site_count; i++) {
        if (graft->site_param[i] < 0)
            continue;
        if (!check_block(graft, &sites[i], err))
            return false;
        int64_t size = block_of(graft, &sites[i]);
        graft->site_param[i] = graft->param_count;
        gd_graft_add(graft, true, sites[i].name, "oft_R.weight", shared ? 1 : sites[i].in / size, size * (size - 1) / 2);
    }
    return true;
}

static void init(const struct gd_graft *graft, float *block, uint64_t seed)
{
    memset(block, 0, (size_t)graft->parameter_count * sizeof(float));
}

static struct gd_value *linear(struct gd_graft_training *training, struct gd_graph *g, const struct gd_site *site,
                               struct gd_value *x, struct gd_value *w, struct gd_value *bias, struct gd_value *const *params)
{
    struct gd_value *r = gd_cayley_rotation(g, params[0], block_of(training->graft, site), terms_of(training->graft));
    return gd_site_linear_base(g, gd_block_rotate(g, x, r, false), w, bias);
}

static void wear(struct gd_graft *graft, const struct gd_site *site, const struct gd_graft_param *params,
                 struct gd_wear_part *part)
{
    int64_t size = block_of(graft, site), count = size * size, packed = params[0].shape[1];
    float *squares = gd_graft_derive(graft, site->in * size), *made = gd_alloc_array((size_t)count, sizeof(float));
    double *scratch = gd_alloc_array(gd_cayley_scratch(size), sizeof(double));
    for (int64_t n = 0; n < site->in / size; n++) {
        if (n < params[0].shape[0])
            gd_cayley(graft->block + params[0].offset + n * packed, size, terms_of(graft), made, scratch);
        for (int64_t i = 0; i < count; i++) /* rows of x are multiplied from the left there */
            squares[n * count + i % size * size + i / size] = made[i];
    }
    part->in_rotate = squares;
    part->rotate_block = (int)size;
    gd_free(scratch);
    gd_free(made);
}

static const char *const refused[] = {"bias", "coft", "fan_in_fan_out", "modules_to_save", NULL};

const struct gd_adapter_method gd_adapter_oft = {
    .name = "oft",
    .peft_type = "OFT",
    .paper = "Qiu et al. 2023, Controlling Text-to-Image Diffusion by Orthogonal Finetuning",
    .help = "Rotates the inputs of linear modules, block by block.",
    .options = options,
    .option_count = GD_COUNT(options),
    .anchor = "oft_R.weight",
    .peft_fields = "{\"peft_version\": \"0.18.0\", \"module_dropout\": 0.0, \"fan_in_fan_out\": false, \"bias\": \"none\", "
                   "\"init_weights\": true, \"coft\": false, \"eps\": 6e-05, \"modules_to_save\": null, "
                   "\"layers_to_transform\": null, \"layers_pattern\": null}",
    .refused = refused,
    .check_file = check_file,
    .create = create,
    .init = init,
    .linear = linear,
    .wear = wear,
};
