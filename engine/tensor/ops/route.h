/*
 * route.h - the routing function of route and its backward pass.
 *
 * Why      Both draw the same numbers.
 * Memory   none
 * Threads  Any; pure functions.
 * Errors   none
 * Limits   none
 * Life     none
 *
 * u = sigmoid(z + log v - log(1 - v)), v uniform in (0, 1): a sample of the relaxed Bernoulli distribution of temperature 1
 * (Maddison et al. 2017); without a key u = sigmoid(z). Segments of one owner share their v, which depends on nothing but
 * (seed, step, leaf, site, owner, element).
 */
#ifndef GD_TENSOR_OPS_ROUTE_H
#define GD_TENSOR_OPS_ROUTE_H

#include "engine/base/philox.h"
#include "engine/tensor/ops/elementwise.h"

#define GD_ROUTE_SITE_SHIFT 40
#define GD_ROUTE_EPS 1e-12

/* What the numbers of a call come from; key NULL: no noise. */
struct gd_route {
    const uint32_t *key;
    const int32_t *owner;
    int64_t width, site;
};

static inline double gd_route_noise(const struct gd_route *route, int64_t segment, int64_t element)
{
    uint64_t stream = gd_philox_stream(GD_RANDOM_ROUTE, route->key[2], route->key[3]);
    uint64_t at = ((uint64_t)route->site << GD_ROUTE_SITE_SHIFT) + (uint64_t)(route->owner[segment] * route->width + element);
    struct gd_philox bits = gd_philox4((uint64_t)route->key[1] << 32 | route->key[0], stream, at);
    double v = ((double)(bits.v[0] >> 8) + 0.5) / 16777216.0;
    return log(v) - log1p(-v);
}

static inline double gd_route_gate(double z, const struct gd_route *route, int64_t segment, int64_t element)
{
    return 1 / (1 + exp(-(z + (route->key != NULL ? gd_route_noise(route, segment, element) : 0))));
}

/* The call's key and owners are inputs `key_at` and the next. */
static inline struct gd_route gd_route_of(const struct gd_kernel_args *args, int key_at)
{
    return (struct gd_route){args->in[key_at].data, args->in[key_at + 1].data, args->params->i[0] * args->params->i[1],
                             args->params->i[2]};
}

/* z f32 [G, splits * skills]; key i32 [4] and owner i32 [G], or neither. */
static inline bool gd_route_shape(struct gd_graph *graph, struct gd_call *call, int key_at)
{
    const struct gd_value *z = call->in[0], *key = call->in_count > key_at ? call->in[key_at] : NULL;
    const struct gd_value *owner = call->in_count > key_at + 1 ? call->in[key_at + 1] : NULL;
    const int64_t *i = call->params.i;
    if (!gd_shape_unary(graph, call))
        return false;
    if (z->rank != 2 || z->dtype != GD_F32 || i[0] < 1 || i[1] < 1 || z->shape[1] != i[0] * i[1] || i[2] < 0)
        return gd_graph_fail(graph, "%s: '%s' is not f32 [segments, splits * skills]", call->op->name, z->name) != NULL;
    if (key != NULL && (key->dtype != GD_I32 || key->rank != 1 || key->shape[0] != 4 || owner == NULL || owner->dtype != GD_I32 ||
                        owner->rank != 1 || owner->shape[0] != z->shape[0]))
        return gd_graph_fail(graph, "%s: key '%s' is not i32 [4], or the segments have no owners", call->op->name, key->name) != NULL;
    return true;
}

#endif
