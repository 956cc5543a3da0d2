#include "server/router.h"

#include <stdio.h>
#include <string.h>

static bool path_fits(const char *pattern, const struct gd_target *target, const char *params[GD_PATH_PARAMS_MAX])
{
    int segment = 0, param = 0;
    for (const char *part = pattern + 1; *part != 0; part += *part == '/') {
        size_t length = strcspn(part, "/");
        if (segment == target->segment_count)
            return false;
        const char *given = target->segments[segment++];
        if (part[0] == '{') {
            if (param == GD_PATH_PARAMS_MAX)
                return false;
            params[param++] = given;
        } else if (strlen(given) != length || memcmp(given, part, length) != 0) {
            return false;
        }
        part += length;
    }
    return segment == target->segment_count;
}

static void allow_add(struct gd_match *match, const char *method)
{
    size_t used = strlen(match->allow);
    snprintf(match->allow + used, sizeof(match->allow) - used, "%s%s", used > 0 ? ", " : "", method);
}

void gd_router_match(const struct gd_route *routes, int count, const char *method, const struct gd_target *target,
                     struct gd_match *match)
{
    *match = (struct gd_match){0};
    const char *wanted = strcmp(method, "HEAD") == 0 ? "GET" : method;
    for (int i = 0; i < count; i++) {
        const char *params[GD_PATH_PARAMS_MAX] = {0};
        if (!path_fits(routes[i].path, target, params))
            continue;
        match->path_known = true;
        allow_add(match, routes[i].method);
        if (strcmp(routes[i].method, "GET") == 0)
            allow_add(match, "HEAD");
        if (strcmp(routes[i].method, wanted) == 0) {
            match->route = &routes[i];
            memcpy(match->params, params, sizeof(params));
        }
    }
    if (match->path_known)
        allow_add(match, "OPTIONS");
}
