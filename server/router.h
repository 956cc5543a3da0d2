/*
 * router.h - from a decoded path to the line of the route table.
 *
 * Why      One place decides 404 and 405, and what Allow says.
 * Memory   Parameters point into the target.
 * Threads  Any; pure.
 * Errors   none
 * Limits   GD_PATH_PARAMS_MAX parameters
 * Life     none
 */
#ifndef GD_SERVER_ROUTER_H
#define GD_SERVER_ROUTER_H

#include "server/guard.h"
#include "server/http.h"

struct gd_match {
    const struct gd_route *route;  /* NULL: no such path, or no such method on it */
    bool path_known;
    const char *params[GD_PATH_PARAMS_MAX];
    char allow[96];                /* "GET, HEAD, OPTIONS" when the path is known */
};
/* HEAD finds the GET route. */
void gd_router_match(const struct gd_route *routes, int count, const char *method, const struct gd_target *target,
                     struct gd_match *match);

#endif
