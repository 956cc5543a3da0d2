/*
 * config.h - what the operator decided: command line over GRAFTD_* environment over file over defaults.
 *
 * Why      One structure, one place of defaults, errors that name the file and line or the flag.
 * Memory   Strings owned by the config.
 * Threads  Filled before the loop starts, then read-only.
 * Errors   GD_INVALID with the flag or file:line.
 * Limits   none
 * Life     gd_config_init -> load_file / set ... -> gd_config_check -> gd_config_release.
 *
 * File (inih): [server] data_dir, models, listen, api_key_file, cors_origins, upload_max_bytes, connection_limit,
 * request_timeout_seconds, allowed_hosts, insecure_http; [engine] device, threads, cache_bytes, memory_limit, packed_cache_bytes; [graders] python,
 * python_seconds, python_memory_bytes; [jobs] keep_checkpoints, jobs_per_pass.
 */
#ifndef GD_SERVER_CONFIG_H
#define GD_SERVER_CONFIG_H

#include "engine/base/error.h"
#include <stdint.h>

struct gd_config {
    char *data_dir, *models_dir;
    char *listen_host;
    int listen_port;                 /* 0: pick one */
    char *device;                    /* "auto" */
    int threads;                     /* 0: all cores */
    char *api_key_file;              /* or NULL */
    char *cors_origins;              /* comma-separated exact origins, or NULL */
    char *allowed_hosts;             /* comma-separated Host values beyond the listen address, or NULL */
    bool insecure_http;              /* allow a non-loopback address without TLS */
    uint64_t upload_max_bytes;       /* 512 MiB */
    int connection_limit;            /* 1024 */
    int request_timeout_seconds;     /* 30: idle or half-open clients */
    uint64_t cache_bytes;            /* KV cache bound of a worker; 0: an eighth of the memory */
    uint64_t packed_cache_bytes;     /* 8 GiB: bound of DATA_DIR/cache/packed, bases laid out for products; 0: none is kept */
    uint64_t memory_limit;           /* of all processes; 0: the machine's or the control group's */
    int keep_checkpoints;            /* 3 */
    int jobs_per_pass;               /* 4: jobs of one base that train side by side; 1: one after the other */
    char *python;                    /* interpreter of python graders, or "off" */
    int python_seconds;              /* a grade may take */
    uint64_t python_memory_bytes;    /* of address space, a grade may take */
};

void gd_config_init(struct gd_config *config);
void gd_config_release(struct gd_config *config);
/* key as in the file, "section.key" ("server.listen", value "127.0.0.1:8900"). `origin` goes into errors ("--listen"). */
GD_MUST_CHECK bool gd_config_set(struct gd_config *config, const char *key, const char *value, const char *origin,
                                 struct gd_error *err);
GD_MUST_CHECK bool gd_config_load_file(struct gd_config *config, const char *path, struct gd_error *err);
GD_MUST_CHECK bool gd_config_load_environment(struct gd_config *config, struct gd_error *err); /* GRAFTD_SERVER_LISTEN ... */
/* graders.python alone: what commands without a server need. */
GD_MUST_CHECK bool gd_config_check_python(const struct gd_config *config, struct gd_error *err);
/* Tells engine/eval/sandbox.h what the operator decided about Python. */
void gd_config_apply_sandbox(const struct gd_config *config);
/* Of memory_limit, or else of what there is: what a worker may use, and its key/value cache. */
/* The devices that engine.device names, in order, a worker each: names[0..count). */
#define GD_DEVICES_MAX 64
#define GD_DEVICE_NAME_BYTES 16
int gd_config_devices(const struct gd_config *config, char names[GD_DEVICES_MAX][GD_DEVICE_NAME_BYTES]);
/* Arithmetic threads of one worker; 0: all cores. Workers share the cores. */
int gd_config_worker_threads(const struct gd_config *config);
/* Of one worker: they share what there is. */
uint64_t gd_config_worker_bytes(const struct gd_config *config);
GD_MUST_CHECK bool gd_config_check(const struct gd_config *config, struct gd_error *err);

#endif
