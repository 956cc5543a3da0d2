/* sandbox_walls.c - who the process is, how much it may take, and which system calls are left. */
#include "engine/eval/sandbox_walls.h"

#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <linux/capability.h>
#include <seccomp.h>
#include <signal.h>
#include <stdio.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#define NOBODY 65534

bool gd_walls_user(struct gd_error *err)
{
    struct __user_cap_header_struct header = {.version = _LINUX_CAPABILITY_VERSION_3};
    struct __user_cap_data_struct none[2] = {{0}};
    if (geteuid() == 0) { /* a container may have taken the right to: then root without any capability must do */
        (void)setgroups(0, NULL);
        if (setresgid(NOBODY, NOBODY, NOBODY) == 0)
            (void)setresuid(NOBODY, NOBODY, NOBODY);
    }
    if (syscall(SYS_capset, &header, none) != 0)
        return gd_fail(err, GD_UNAVAILABLE, "capabilities cannot be dropped (errno %d)", errno);
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    return true;
}

static bool limit(int resource, const char *name, uint64_t most, struct gd_error *err)
{
    struct rlimit now;
    if (getrlimit((__rlimit_resource_t)resource, &now) == 0 && now.rlim_max < most)
        most = now.rlim_max;
    struct rlimit wanted = {.rlim_cur = most, .rlim_max = most};
    return setrlimit((__rlimit_resource_t)resource, &wanted) == 0 ||
           gd_fail(err, GD_UNAVAILABLE, "the limit of %s cannot be set (errno %d)", name, errno);
}

bool gd_walls_limits(int seconds, struct gd_error *err)
{
    return limit(RLIMIT_CPU, "CPU seconds", (uint64_t)seconds + 1, err) && limit(RLIMIT_CORE, "cores", 0, err) &&
           limit(RLIMIT_FSIZE, "file sizes", 0, err) && limit(RLIMIT_NOFILE, "descriptors", 64, err) &&
           limit(RLIMIT_NPROC, "processes", 1, err) && limit(RLIMIT_MEMLOCK, "locked memory", 0, err) &&
           limit(RLIMIT_MSGQUEUE, "message queues", 0, err);
}

bool gd_walls_memory(uint64_t memory_bytes, struct gd_error *err)
{
    return limit(RLIMIT_AS, "memory", memory_bytes, err);
}

/* What an interpreter needs to start, read modules, compute and end. */
static const int allowed[] = {
    SCMP_SYS(access), SCMP_SYS(arch_prctl), SCMP_SYS(brk), SCMP_SYS(clock_getres), SCMP_SYS(clock_gettime),
    SCMP_SYS(clock_nanosleep), SCMP_SYS(close), SCMP_SYS(dup), SCMP_SYS(dup2), SCMP_SYS(dup3), SCMP_SYS(execve),
    SCMP_SYS(exit), SCMP_SYS(exit_group), SCMP_SYS(faccessat), SCMP_SYS(faccessat2), SCMP_SYS(fadvise64), SCMP_SYS(fstat),
    SCMP_SYS(futex), SCMP_SYS(getcwd), SCMP_SYS(getdents64), SCMP_SYS(getegid), SCMP_SYS(geteuid), SCMP_SYS(getgid),
    SCMP_SYS(getpid), SCMP_SYS(getrandom), SCMP_SYS(getrlimit), SCMP_SYS(getrusage), SCMP_SYS(gettid),
    SCMP_SYS(gettimeofday), SCMP_SYS(getuid), SCMP_SYS(lseek), SCMP_SYS(lstat), SCMP_SYS(madvise), SCMP_SYS(membarrier),
    SCMP_SYS(mmap), SCMP_SYS(mprotect), SCMP_SYS(mremap), SCMP_SYS(munmap), SCMP_SYS(nanosleep), SCMP_SYS(newfstatat),
    SCMP_SYS(poll), SCMP_SYS(ppoll), SCMP_SYS(pread64), SCMP_SYS(preadv), SCMP_SYS(pselect6), SCMP_SYS(read),
    SCMP_SYS(readlink), SCMP_SYS(readlinkat), SCMP_SYS(readv), SCMP_SYS(restart_syscall), SCMP_SYS(rseq),
    SCMP_SYS(rt_sigaction), SCMP_SYS(rt_sigprocmask), SCMP_SYS(rt_sigreturn), SCMP_SYS(sched_getaffinity),
    SCMP_SYS(sched_yield), SCMP_SYS(select), SCMP_SYS(set_robust_list), SCMP_SYS(set_tid_address), SCMP_SYS(sigaltstack),
    SCMP_SYS(stat), SCMP_SYS(statx), SCMP_SYS(sysinfo), SCMP_SYS(time), SCMP_SYS(times), SCMP_SYS(uname), SCMP_SYS(write),
    SCMP_SYS(writev),
};
static const uint64_t controls[] = {F_DUPFD, F_DUPFD_CLOEXEC, F_GETFD, F_SETFD, F_GETFL};

static int allow_some(scmp_filter_ctx filter)
{
    const uint64_t writes = O_ACCMODE | O_CREAT | O_TRUNC | (O_TMPFILE & ~O_DIRECTORY);
    int status = seccomp_rule_add(filter, SCMP_ACT_ALLOW, SCMP_SYS(open), 1, SCMP_A1(SCMP_CMP_MASKED_EQ, writes, 0));
    status |= seccomp_rule_add(filter, SCMP_ACT_ALLOW, SCMP_SYS(openat), 1, SCMP_A2(SCMP_CMP_MASKED_EQ, writes, 0));
    for (size_t i = 0; i < GD_COUNT(controls); i++)
        status |= seccomp_rule_add(filter, SCMP_ACT_ALLOW, SCMP_SYS(fcntl), 1, SCMP_A1(SCMP_CMP_EQ, controls[i]));
    status |= seccomp_rule_add(filter, SCMP_ACT_ALLOW, SCMP_SYS(ioctl), 1, SCMP_A1(SCMP_CMP_EQ, TCGETS));
    status |= seccomp_rule_add(filter, SCMP_ACT_ALLOW, SCMP_SYS(ioctl), 1, SCMP_A1(SCMP_CMP_EQ, FIOCLEX));
    status |= seccomp_rule_add(filter, SCMP_ACT_ALLOW, SCMP_SYS(prctl), 1, SCMP_A0(SCMP_CMP_EQ, PR_SET_SECCOMP));
    status |= seccomp_rule_add(filter, SCMP_ACT_ALLOW, SCMP_SYS(prlimit64), 1, SCMP_A0(SCMP_CMP_EQ, 0)); /* its own: down */
    return status;
}

static int load_filter(void)
{
    scmp_filter_ctx filter = seccomp_init(SCMP_ACT_ERRNO(EPERM));
    int status = filter == NULL ? -1 : 0;
    for (size_t i = 0; status == 0 && i < GD_COUNT(allowed); i++)
        status = seccomp_rule_add(filter, SCMP_ACT_ALLOW, allowed[i], 0);
    status = status != 0 ? status : allow_some(filter);
    status = status != 0 ? status : seccomp_load(filter);
    seccomp_release(filter);
    return status;
}

/* The second filter's program, some hundred bytes, into a pipe. */
static int leave_seal(int seal_fd)
{
    static const int closed[] = {SCMP_SYS(execve), SCMP_SYS(execveat), SCMP_SYS(prctl), SCMP_SYS(seccomp)};
    int pipe_fds[2];
    scmp_filter_ctx filter = seccomp_init(SCMP_ACT_ALLOW);
    int status = filter == NULL || pipe(pipe_fds) != 0 ? -1 : 0;
    if (status == 0) {
        for (size_t i = 0; status == 0 && i < GD_COUNT(closed); i++)
            status = seccomp_rule_add(filter, SCMP_ACT_ERRNO(EPERM), closed[i], 0);
        status = status != 0 ? status : seccomp_export_bpf(filter, pipe_fds[1]);
        close(pipe_fds[1]);
        if (pipe_fds[0] != seal_fd) {
            status = dup2(pipe_fds[0], seal_fd) == seal_fd ? status : -1;
            close(pipe_fds[0]);
        }
    }
    seccomp_release(filter);
    return status;
}

bool gd_walls_calls(int seal_fd, struct gd_error *err)
{
    int status = leave_seal(seal_fd);
    if (status == 0)
        status = load_filter();
    return status == 0 || gd_fail(err, GD_UNAVAILABLE,
                                  "this system does not let a process filter its system calls (seccomp, %d), so Python cannot "
                                  "be kept from the network", status);
}
