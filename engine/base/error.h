/*
 * error.h - the one error type: a code, the parameter at fault, a message for a person.
 *
 * Why      Every fallible function says what failed, where, and the way out, and the server
 *          turns it into OpenAI's error shape without knowing who failed.
 * Memory   A plain struct on the caller's stack; nothing to free.
 * Threads  Any; an error belongs to the thread that holds it.
 * Errors   The first failure wins: gd_fail on an error that is already set keeps the first.
 * Limits   Messages are cut at GD_ERROR_MESSAGE_BYTES, at a UTF-8 boundary.
 * Life     `struct gd_error err = {0};` then pass &err; reuse after gd_error_clear.
 */
#ifndef GD_BASE_ERROR_H
#define GD_BASE_ERROR_H

#include <stdarg.h>
#include <stdbool.h>

#define GD_ERROR_MESSAGE_BYTES 1024

/*    name           http  error.type                wire code (default of error.code) */
#define GD_CODE_LIST(X)                                                            \
    X(OK,            200, "",                       "ok")                          \
    X(INVALID,       400, "invalid_request_error",  "invalid_value")               \
    X(MISSING,       400, "invalid_request_error",  "missing_required_parameter")  \
    X(UNKNOWN_FIELD, 400, "invalid_request_error",  "unknown_parameter")           \
    X(BAD_MODEL,     400, "invalid_request_error",  "bad_model")                   \
    X(BAD_FILE,      400, "invalid_request_error",  "invalid_file")                \
    X(CONTEXT,       400, "invalid_request_error",  "context_length_exceeded")     \
    X(UNSUPPORTED,   400, "invalid_request_error",  "unsupported_value")           \
    X(NO_ROOM,       400, "invalid_request_error",  "insufficient_memory")         \
    X(UNAUTHORIZED,  401, "authentication_error",   "invalid_api_key")             \
    X(FORBIDDEN,     403, "permission_error",       "forbidden")                   \
    X(NOT_FOUND,     404, "not_found_error",        "not_found")                   \
    X(BAD_METHOD,    405, "invalid_request_error",  "method_not_allowed")          \
    X(TIMEOUT,       408, "invalid_request_error",  "request_timeout")             \
    X(CONFLICT,      409, "invalid_request_error",  "conflict")                    \
    X(TOO_LARGE,     413, "invalid_request_error",  "request_too_large")           \
    X(MEDIA_TYPE,    415, "invalid_request_error",  "unsupported_media_type")      \
    X(BUSY,          429, "rate_limit_error",       "rate_limit_exceeded")         \
    X(CANCELLED,     499, "invalid_request_error",  "cancelled")                   \
    X(INTERNAL,      500, "server_error",           "internal_error")              \
    X(IO,            500, "server_error",           "io_error")                    \
    X(NO_MEMORY,     503, "server_error",           "out_of_memory")               \
    X(DEVICE_LOST,   503, "server_error",           "device_lost")                 \
    X(UNAVAILABLE,   503, "server_error",           "service_unavailable")         \
    X(DISK_FULL,     507, "server_error",           "disk_full")

#define GD_CODE_ENUM(name, http, type, wire) GD_##name,
enum gd_code { GD_CODE_LIST(GD_CODE_ENUM) GD_CODE_COUNT };
#undef GD_CODE_ENUM

struct gd_error {
    enum gd_code code;   /* GD_OK until something fails */
    char param[96];      /* the field at fault ("method.supervised.hyperparameters.n_epochs"), or "" */
    char message[GD_ERROR_MESSAGE_BYTES]; /* names the thing, the value and the way out; no newline */
};

/* Sets `err` (unless already set) and returns false, so that callers can `return gd_fail(...)`. */
bool gd_fail(struct gd_error *err, enum gd_code code, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

/* The same with the name of the field at fault. */
bool gd_fail_param(struct gd_error *err, enum gd_code code, const char *param, const char *format, ...)
    __attribute__((format(printf, 4, 5)));

/* GD_IO or GD_DISK_FULL (ENOSPC, EDQUOT) or GD_NOT_FOUND (ENOENT) from errno: "WHAT: strerror". */
bool gd_fail_errno(struct gd_error *err, int errno_value, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

/* Puts "context: " in front of the message of a set error; does nothing to GD_OK. */
void gd_error_context(struct gd_error *err, const char *format, ...) __attribute__((format(printf, 2, 3)));

void gd_error_clear(struct gd_error *err);

int gd_code_http(enum gd_code code);          /* 400 */
const char *gd_code_type(enum gd_code code);  /* "invalid_request_error" */
const char *gd_code_wire(enum gd_code code);  /* "invalid_value" */
enum gd_code gd_code_from_wire(const char *wire); /* GD_INTERNAL when unknown */

#define GD_MUST_CHECK __attribute__((warn_unused_result))
#define GD_COUNT(array) (sizeof(array) / sizeof((array)[0]))

#endif
