/*
 * bottleneck.h - what the bottleneck adapters houlsby, pfeiffer and parallel share: everything but their defaults and
 * where they stand.
 *
 * Why      They are one module, y = s (W_up f(W_down x + b_down) + b_up), at different places of a layer.
 * Memory   Parameters belong to the graft.
 * Threads  engine thread
 * Errors   GD_INVALID with param "adapter.FIELD"
 * Limits   a bottleneck of at most GD_WEAR_RANK_MAX
 * Life     hooks of struct gd_adapter_method
 *
 * A block is a layer's attention ("self_attn") or feed-forward part ("mlp"). In a pre-norm decoder it computes h from
 * n = norm(u), and the layer goes on with u + h. The adapter stands between the block and that sum:
 *
 *     serial    h' = A(h) + h,  without `residual` A(h)
 *     parallel  h' = h + A(n),  with `residual` h + A(n) + n
 *
 * It has no norm of its own. Counts a module: 2 d m + m + d with biases, 2 d m without, and 1 with a learned scale.
 */
#ifndef GD_ADAPTER_BOTTLENECK_H
#define GD_ADAPTER_BOTTLENECK_H

#include "engine/adapter/adapter.h"

extern const char *const gd_bottleneck_functions[]; /* names of enum gd_activation in its order */
extern const char *const gd_bottleneck_starts[];

#define GD_BOTTLENECK_OPTIONS(reduction, function, scale, adds_input, blocks)                                                 \
    {.name = "reduction_factor", .type = GD_OPTION_NUMBER, .min = 1, .max = 65536, .fallback = reduction,                     \
     .peft_fallback = reduction, .help = "The bottleneck is the model's width divided by this, rounded down."},               \
    {.name = "bottleneck_size", .type = GD_OPTION_INT, .min = 0, .max = GD_WEAR_RANK_MAX,                                     \
     .help = "The bottleneck itself, instead of reduction_factor; 0: by reduction_factor."},                                  \
    {.name = "non_linearity", .type = GD_OPTION_CHOICE, .choices = gd_bottleneck_functions, .fallback = function,             \
     .peft_fallback = function, .help = "The function in the bottleneck."},                                                   \
    {.name = "scaling", .type = GD_OPTION_NUMBER, .min = -100, .max = 100, .fallback = scale, .peft_fallback = scale,         \
     .help = "The adapter's output is multiplied by this before it is added."},                                              \
    {.name = "learned_scaling", .type = GD_OPTION_BOOL, .help = "Train the scale of each module; it starts at scaling."},     \
    {.name = "residual", .type = GD_OPTION_BOOL, .fallback = adds_input, .peft_fallback = adds_input,                         \
     .help = "Add the adapter's input to its output."},                                                                       \
    {.name = "use_bias", .type = GD_OPTION_BOOL, .fallback = 1, .peft_fallback = 1, .help = "Biases after both projections."},\
    {.name = "init_weights", .type = GD_OPTION_CHOICE, .use = GD_OPTION_TRAINS, .choices = gd_bottleneck_starts,              \
     .help = "'mam_adapter': kaiming-uniform down, zero up, so that the start adds nothing; 'bert': both N(0, 0.02^2)."},     \
    {.name = "adapter_dropout", .type = GD_OPTION_NUMBER, .use = GD_OPTION_TRAINS, .max = 0.95,                               \
     .help = "Part of the adapter's outputs that training zeroes."},                                                          \
    {.name = "target_modules", .type = GD_OPTION_MODULES, .min = 1, .modules = blocks,                                        \
     .help = "Blocks that get an adapter: self_attn, mlp, or dotted suffixes of them."},

bool gd_bottleneck_create(struct gd_graft *graft, struct gd_error *err);
void gd_bottleneck_init(const struct gd_graft *graft, float *block, uint64_t seed);
struct gd_value *gd_bottleneck_serial(struct gd_graft_training *training, struct gd_graph *g, const struct gd_site *site,
                                      struct gd_value *input, struct gd_value *output, struct gd_value *const *params);
struct gd_value *gd_bottleneck_parallel(struct gd_graft_training *training, struct gd_graph *g, const struct gd_site *site,
                                        struct gd_value *input, struct gd_value *output, struct gd_value *const *params);
void gd_bottleneck_wear_serial(struct gd_graft *graft, const struct gd_site *site, const struct gd_graft_param *params,
                               struct gd_wear_part *part);
void gd_bottleneck_wear_parallel(struct gd_graft *graft, const struct gd_site *site, const struct gd_graft_param *params,
                                 struct gd_wear_part *part);

#endif
