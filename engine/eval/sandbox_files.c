/* sandbox_files.c - a root folder with the interpreter and its libraries, read-only, and nothing else. */
#include "engine/base/alloc.h"
#include "engine/eval/sandbox_walls.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/landlock.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#define STAGE "/tmp" /* hidden, in this process's own mount namespace, while the new root is put together on it */
#define PATHS_MAX 8

struct paths {
    char prefix[PATH_MAX]; /* of an interpreter that lives elsewhere: two folders up */
    const char *list[PATHS_MAX];
    int count;
};

static void find_paths(struct paths *paths, const char *interpreter)
{
    static const char *const usual[] = {"/usr", "/lib", "/lib64", "/lib32", "/bin", "/etc/ld.so.cache"};
    *paths = (struct paths){.count = 0};
    for (size_t i = 0; i < GD_COUNT(usual); i++)
        if (access(usual[i], F_OK) == 0)
            paths->list[paths->count++] = usual[i];
    snprintf(paths->prefix, sizeof paths->prefix, "%s", interpreter);
    for (int up = 0; up < 2; up++) {
        char *slash = strrchr(paths->prefix, '/');
        if (slash != NULL)
            *slash = '\0';
    }
    if (paths->prefix[0] != '\0' && strncmp(paths->prefix, "/usr/", 5) != 0 && strcmp(paths->prefix, "/usr") != 0)
        paths->list[paths->count++] = paths->prefix;
}

static bool write_text(const char *path, const char *text)
{
    int fd = open(path, O_WRONLY | O_CLOEXEC);
    bool ok = fd >= 0 && write(fd, text, strlen(text)) == (ssize_t)strlen(text);
    if (fd >= 0)
        close(fd);
    return ok;
}

/* With the right to (root), without a user namespace; else inside one, as nobody there. */
static bool enter_namespaces(void)
{
    const int flags = CLONE_NEWNS | CLONE_NEWNET | CLONE_NEWIPC | CLONE_NEWUTS;
    char map[64];
    uid_t uid = geteuid();
    gid_t gid = getegid();
    if (unshare(flags) == 0)
        return true;
    if (unshare(flags | CLONE_NEWUSER) != 0)
        return false;
    (void)write_text("/proc/self/setgroups", "deny");
    snprintf(map, sizeof map, "65534 %u 1", (unsigned)uid);
    bool mapped = write_text("/proc/self/uid_map", map);
    snprintf(map, sizeof map, "65534 %u 1", (unsigned)gid);
    return write_text("/proc/self/gid_map", map) && mapped;
}

/* A read-only copy of the mounts at `path`, attached nowhere yet. */
static int clone_path(const char *path)
{
    int fd = open_tree(AT_FDCWD, path, OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC | AT_RECURSIVE);
    struct mount_attr attr = {.attr_set = MOUNT_ATTR_RDONLY | MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV};
    if (fd >= 0 && mount_setattr(fd, "", AT_EMPTY_PATH | AT_RECURSIVE, &attr, sizeof attr) != 0) {
        close(fd);
        return -1;
    }
    return fd;
}

static bool make_folders(char *path)
{
    for (char *slash = strchr(path + strlen(STAGE) + 1, '/'); slash != NULL; slash = strchr(slash + 1, '/')) {
        *slash = '\0';
        bool ok = mkdir(path, 0755) == 0 || errno == EEXIST;
        *slash = '/';
        if (!ok)
            return false;
    }
    return true;
}

static bool attach(int fd, const char *path)
{
    struct stat info;
    char target[PATH_MAX + sizeof STAGE];
    snprintf(target, sizeof target, STAGE "%s", path);
    if (fstatat(fd, "", &info, AT_EMPTY_PATH) != 0 || !make_folders(target))
        return false;
    if (S_ISDIR(info.st_mode)) {
        if (mkdir(target, 0755) != 0 && errno != EEXIST)
            return false;
    } else {
        int file = open(target, O_WRONLY | O_CREAT | O_CLOEXEC, 0644);
        if (file < 0)
            return false;
        close(file);
    }
    return move_mount(fd, "", AT_FDCWD, target, MOVE_MOUNT_F_EMPTY_PATH) == 0;
}

static bool change_root(void)
{
    return chdir(STAGE) == 0 && syscall(SYS_pivot_root, ".", ".") == 0 && umount2(".", MNT_DETACH) == 0 &&
           chdir("/") == 0 && mount(NULL, "/", NULL, MS_REMOUNT | MS_BIND | MS_RDONLY | MS_NOSUID | MS_NODEV, NULL) == 0;
}

static bool build_root(const struct paths *paths)
{
    int fds[PATHS_MAX];
    bool ok = enter_namespaces() && mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) == 0;
    if (!ok)
        return false;
    char links[PATHS_MAX][PATH_MAX];
    for (int i = 0; i < paths->count; i++) { /* before the stage hides what lies below it */
        ssize_t length = readlink(paths->list[i], links[i], PATH_MAX - 1);
        links[i][length > 0 ? length : 0] = '\0';
        fds[i] = length > 0 ? -1 : clone_path(paths->list[i]);
        ok = ok && (length > 0 || fds[i] >= 0);
    }
    ok = ok && mount("none", STAGE, "tmpfs", MS_NOSUID | MS_NODEV, "size=64k,mode=755") == 0;
    for (int i = 0; i < paths->count; i++) {
        char target[PATH_MAX + sizeof STAGE];
        snprintf(target, sizeof target, STAGE "%s", paths->list[i]);
        ok = ok && (fds[i] >= 0 ? attach(fds[i], paths->list[i]) : symlink(links[i], target) == 0);
        if (fds[i] >= 0)
            close(fds[i]);
    }
    return ok && change_root();
}

static bool add_rule(int ruleset, const char *path, uint64_t access)
{
    int fd = open(path, O_PATH | O_CLOEXEC);
    struct stat info;
    if (fd < 0)
        return errno == ENOENT;
    if (fstat(fd, &info) == 0 && !S_ISDIR(info.st_mode))
        access &= ~(uint64_t)LANDLOCK_ACCESS_FS_READ_DIR;
    struct landlock_path_beneath_attr rule = {.allowed_access = access, .parent_fd = fd};
    bool ok = syscall(SYS_landlock_add_rule, ruleset, LANDLOCK_RULE_PATH_BENEATH, &rule, 0) == 0;
    close(fd);
    return ok;
}

static bool raise_landlock(const struct paths *paths)
{
    long version = syscall(SYS_landlock_create_ruleset, NULL, 0, LANDLOCK_CREATE_RULESET_VERSION);
    if (version < 1)
        return false;
    struct landlock_ruleset_attr attr = {.handled_access_fs = (LANDLOCK_ACCESS_FS_MAKE_SYM << 1) - 1};
    if (version >= 2)
        attr.handled_access_fs |= LANDLOCK_ACCESS_FS_REFER;
    int ruleset = (int)syscall(SYS_landlock_create_ruleset, &attr, sizeof attr, 0);
    bool ok = ruleset >= 0;
    for (int i = 0; ok && i < paths->count; i++)
        ok = add_rule(ruleset, paths->list[i],
                      LANDLOCK_ACCESS_FS_READ_FILE | LANDLOCK_ACCESS_FS_READ_DIR | LANDLOCK_ACCESS_FS_EXECUTE);
    ok = ok && syscall(SYS_landlock_restrict_self, ruleset, 0) == 0;
    if (ruleset >= 0)
        close(ruleset);
    return ok;
}

bool gd_walls_files(const char *interpreter, struct gd_error *err)
{
    struct paths paths;
    find_paths(&paths, interpreter);
    bool root = build_root(&paths), rules = raise_landlock(&paths);
    if (chdir("/") != 0)
        return gd_fail_errno(err, errno, "chdir /");
    if (root || rules)
        return true;
    return gd_fail(err, GD_UNAVAILABLE,
                   "this system grants neither namespaces nor Landlock, so Python cannot be kept from files: allow one of "
                   "them (in a container: unprivileged user namespaces, or the landlock system calls)");
}
