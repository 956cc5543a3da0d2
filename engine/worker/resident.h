/*
 * resident.h - the bases and grafts that a worker holds in memory, and the engines that generate on them.
 *
 * Why      Tuning and serving share one base; a graft is read once and worn by many requests.
 * Memory   Owns models, grafts, engines; evicts idle ones when GD_RESIDENT_MODELS_MAX bases are loaded, and for jobs that need
 *          their memory. An engine's cache is what is left, up to cache_bytes.
 * Threads  engine thread
 * Errors   those of gd_model_open and gd_graft_load
 * Limits   GD_RESIDENT_MODELS_MAX bases, GD_RESIDENT_GRAFTS_MAX grafts
 * Life     init -> get ... -> release.
 */
#ifndef GD_WORKER_RESIDENT_H
#define GD_WORKER_RESIDENT_H

#include "engine/infer/readout.h"
#include "engine/infer/engine.h"

#define GD_RESIDENT_MODELS_MAX 4
#define GD_RESIDENT_GRAFTS_MAX 64

struct gd_resident_graft {
    char *path, *task;       /* task NULL: none was asked for */
    struct gd_graft *graft;
    uint64_t used;           /* clock of last use */
};

struct gd_resident {
    struct gd_model *model;
    struct gd_infer *infer;  /* made with the first request */
    struct gd_readout *readout; /* likewise */
    int holders;             /* jobs that train on it */
    uint64_t used;
    struct gd_resident_graft grafts[GD_RESIDENT_GRAFTS_MAX];
    int graft_count;
};

struct gd_residents {
    struct gd_resident entry[GD_RESIDENT_MODELS_MAX];
    int count;
    uint64_t clock;
    size_t cache_bytes;
};

void gd_residents_init(struct gd_residents *residents, size_t cache_bytes);
void gd_residents_release(struct gd_residents *residents);
/* Opens or finds the base, kept in memory so: each quantization is a base of its own. The pointer is good until the next call that opens another base; a holder pins it. */
GD_MUST_CHECK bool gd_residents_model(struct gd_residents *residents, const char *id, const char *path,
                                      enum gd_quantization quantization, struct gd_resident **out, struct gd_error *err);
GD_MUST_CHECK bool gd_residents_infer(struct gd_residents *residents, struct gd_resident *resident, struct gd_error *err);
GD_MUST_CHECK bool gd_residents_readout(struct gd_residents *residents, struct gd_resident *resident, struct gd_error *err);
/* `task`: what a graft by task is worn for, or NULL (gd_graft_wear_task); each is a graft of its own here. */
GD_MUST_CHECK bool gd_residents_graft(struct gd_residents *residents, struct gd_resident *resident, const char *folder,
                                      const char *task, struct gd_graft **out, struct gd_error *err);
/* A job trains on this base (+1) or does so no more (-1): a held base is not evicted. */
/* Memory for a job on `keep`: engines that nobody waits for give way, then other bases that nobody holds. False: what is busy
 * leaves too little. Pointers to residents are good no more. */
bool gd_residents_make_room(struct gd_residents *residents, const struct gd_model *keep, size_t bytes);
void gd_residents_hold(struct gd_residents *residents, const struct gd_model *model, int change);
/* Drops a graft that was deleted, once nobody wears it. */
void gd_residents_forget(struct gd_residents *residents, const char *folder);

bool gd_residents_busy(const struct gd_residents *residents);
/* One turn of every engine that has work. */
void gd_residents_turn(struct gd_residents *residents);
void gd_residents_stats(const struct gd_residents *residents, struct gd_infer_stats *sum);

#endif
