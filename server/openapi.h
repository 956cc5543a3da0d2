/*
 * openapi.h - api-spec/openapi.yaml, inside the program.
 *
 * Why      The contract that a daemon serves is the one that it was built with; no file is looked for at run time.
 * Memory   Constant.
 * Threads  Any.
 * Errors   none
 * Limits   none
 * Life     none
 */
#ifndef GD_SERVER_OPENAPI_H
#define GD_SERVER_OPENAPI_H

#include <stddef.h>

extern const unsigned char gd_openapi_yaml[];
extern const size_t gd_openapi_yaml_length;

#endif
