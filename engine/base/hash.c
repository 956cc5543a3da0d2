/* Digests of fsio.h: xxh3-128 by xxHash, SHA-256 by nettle. */
#include "engine/base/alloc.h"
#include "engine/base/fsio.h"

#include <errno.h>
#include <fcntl.h>
#include <nettle/sha2.h>
#include <string.h>
#include <unistd.h>
#include <xxhash.h>

#define READ_BYTES ((size_t)1 << 20)

static void to_hex(const unsigned char *bytes, size_t length, char *out)
{
    static const char digits[] = "0123456789abcdef";
    for (size_t i = 0; i < length; i++) {
        out[2 * i] = digits[bytes[i] >> 4];
        out[2 * i + 1] = digits[bytes[i] & 15u];
    }
    out[2 * length] = '\0';
}

static void xxh3_to_hex(XXH128_hash_t hash, char out[33])
{
    XXH128_canonical_t canonical; /* big-endian: the same text on every machine */
    XXH128_canonicalFromHash(&canonical, hash);
    to_hex(canonical.digest, sizeof(canonical.digest), out);
}

void gd_hash_xxh3(const void *bytes, size_t length, char out[33])
{
    xxh3_to_hex(XXH3_128bits(bytes, length), out);
}

void gd_hash_sha256(const void *bytes, size_t length, char out[65])
{
    struct sha256_ctx context;
    unsigned char digest[SHA256_DIGEST_SIZE];
    sha256_init(&context);
    sha256_update(&context, length, bytes);
    sha256_digest(&context, sizeof(digest), digest);
    to_hex(digest, sizeof(digest), out);
}

bool gd_hash_file_xxh3(const char *path, char out[33], struct gd_error *err)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0)
        return gd_fail_errno(err, errno, "open %s", path);
    XXH3_state_t *state = XXH3_createState();
    unsigned char *bytes = gd_alloc(READ_BYTES);
    bool ok = state != NULL || gd_fail(err, GD_NO_MEMORY, "no memory to hash %s", path);
    if (ok)
        XXH3_128bits_reset(state);
    while (ok) {
        ssize_t got = read(fd, bytes, READ_BYTES);
        if (got < 0 && errno == EINTR)
            continue;
        if (got < 0)
            ok = gd_fail_errno(err, errno, "read %s", path);
        if (got <= 0)
            break;
        XXH3_128bits_update(state, bytes, (size_t)got);
    }
    if (ok)
        xxh3_to_hex(XXH3_128bits_digest(state), out);
    XXH3_freeState(state);
    gd_free(bytes);
    close(fd);
    return ok;
}
