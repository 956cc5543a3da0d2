#include "cuda/blas.h"
#ifdef GD_CUDA_EMULATED

bool gd_blas_load(struct gd_blas *blas, struct gd_error *err)
{
#define TAKE(name) blas->name = name;
    GD_BLAS_LIST(TAKE)
#undef TAKE
    return true;
}

#else
#include <dlfcn.h>
#include <string.h>

#define TEXT_OF(x) #x
#define TEXT(x) TEXT_OF(x)
#define LIBRARY "libcublasLt.so." TEXT(CUBLAS_VER_MAJOR)

static bool take(void *library, const char *name, void *function, struct gd_error *err)
{
    void *found = dlsym(library, name);
    if (found == NULL)
        return gd_fail_param(err, GD_UNSUPPORTED, "device", "%s has no %s: it is older than what this build needs", LIBRARY, name);
    memcpy(function, &found, sizeof(found));
    return true;
}

bool gd_blas_load(struct gd_blas *blas, struct gd_error *err)
{
    void *library = dlopen(LIBRARY, RTLD_NOW | RTLD_LOCAL);
    if (library == NULL)
        return gd_fail_param(err, GD_UNSUPPORTED, "device",
                             "cuBLAS is needed and does not load (%s): install it, or put its folder into LD_LIBRARY_PATH", dlerror());
#define TAKE(name) \
    if (!take(library, #name, &blas->name, err)) \
        return false;
    GD_BLAS_LIST(TAKE)
#undef TAKE
    return true;
}
#endif
