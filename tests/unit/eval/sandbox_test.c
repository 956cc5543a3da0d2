/* Python graders: what they compute, and everything that they must not do. This program is its own sandbox. */
#include "engine/base/alloc.h"
#include "engine/base/fsio.h"
#include "engine/eval/grader.h"
#include "engine/eval/sandbox.h"
#include <errno.h>
#include <grp.h>
#include <seccomp.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

static void configure(const char *interpreter)
{
    gd_sandbox_configure(&(struct gd_sandbox_settings){.interpreter = interpreter, .seconds = 3, .memory_bytes = UINT64_C(256) << 20});
}

static int setup(void **state)
{
    configure(GD_SANDBOX_INTERPRETER);
    return 0;
}

static struct gd_grader *grader_of(const char *source, struct gd_error *err)
{
    cJSON *json = cJSON_CreateObject();
    cJSON_AddStringToObject(json, "type", "python");
    cJSON_AddStringToObject(json, "name", "p");
    cJSON_AddStringToObject(json, "source", source);
    cJSON_AddStringToObject(json, "image_tag", "2025-05-08");
    struct gd_grader *grader = gd_grader_parse(json, "grader", err);
    cJSON_Delete(json);
    return grader;
}

static void run(const char *source, struct gd_grade *grade)
{
    struct gd_error err = {0};
    struct gd_grader *grader = grader_of(source, &err);
    if (grader == NULL)
        fail_msg("%s", err.message);
    cJSON *sample = gd_grader_sample("{\"n\": 4}"), *item = cJSON_CreateObject();
    cJSON_AddStringToObject(item, "answer", "Straße");
    gd_grader_run(grader, item, sample, grade);
    cJSON_Delete(sample);
    cJSON_Delete(item);
    gd_grader_destroy(grader);
}

/* A grader whose body is `body`, two statements a line; what it says must contain `said`. */
static void check_refused(const char *body, enum gd_grade_flag flag, const char *said)
{
    struct gd_grade grade;
    char *source = gd_format("def grade(sample, item):\n%s\n    return 1.0\n", body);
    run(source, &grade);
    if (!grade.flags[flag] || strstr(grade.error.message, said) == NULL || grade.reward != 0)
        fail_msg("%s\nreward %g, said '%s', expected '%s'", body, grade.reward, grade.error.message, said);
    gd_grade_release(&grade);
    gd_free(source);
}

static void it_grades_what_it_is_given(void **state)
{
    struct gd_grade grade;
    run("import math, re, json, statistics, difflib, collections, datetime\n"
        "def grade(sample, item):\n"
        "    print('noise')\n"
        "    assert sample['output_text'] == '{\"n\": 4}' and item['answer'] == 'Stra\\u00dfe'\n"
        "    return math.sqrt(sample['output_json']['n']) + 0.25\n",
        &grade);
    assert_string_equal(grade.error.message, "");
    assert_true(grade.reward == 2.25 && grade.passed);
    gd_grade_release(&grade);
}

static void what_its_code_does_wrong_is_said_with_the_line(void **state)
{
    check_refused("    return 1 / 0", GD_GRADE_PYTHON_RUNTIME, "line 2: ZeroDivisionError: division by zero");
    check_refused("    return item['x']", GD_GRADE_PYTHON_RUNTIME, "line 2: KeyError: 'x'");
    check_refused("    return 'good'", GD_GRADE_PYTHON_RUNTIME, "grade returned str, not a number");
    check_refused("    return float('nan')", GD_GRADE_PYTHON_RUNTIME, "not a finite number");
    check_refused("    raise SystemExit(3)", GD_GRADE_PYTHON_RUNTIME, "SystemExit");
    check_refused("    import os; os._exit(7)", GD_GRADE_PYTHON_RUNTIME, "without a result (exit code 7)");
    check_refused("    return (", GD_GRADE_PYTHON_RUNTIME, "SyntaxError");
    check_refused("    return grade(sample, item)", GD_GRADE_PYTHON_RUNTIME, "RecursionError");
}

static void sources_are_checked_without_running_them(void **state)
{
    static const struct {
        const char *source, *said;
    } cases[] = {{"while True: pass\ndef grade(sample, item): return 1", NULL},
                 {"def grade(sample, item:\n  return 1", "line 1: SyntaxError"},
                 {"def grad(sample, item): return 1", "defines no function grade"},
                 {"grade = lambda sample, item: 1", NULL}};
    for (size_t i = 0; i < GD_COUNT(cases); i++) {
        struct gd_error err = {0};
        struct gd_grader *grader = grader_of(cases[i].source, &err);
        assert_non_null(grader);
        assert_int_equal(gd_grader_check(grader, "grader", &err), cases[i].said == NULL);
        if (cases[i].said != NULL) {
            assert_string_equal(err.param, "grader.source");
            assert_non_null(strstr(err.message, cases[i].said));
        }
        gd_grader_destroy(grader);
    }
}

static void it_starts_nothing_and_reaches_nobody(void **state)
{
    const enum gd_grade_flag bad = GD_GRADE_PYTHON_RUNTIME;
    check_refused("    import os\n    while True: os.fork()", bad, "PermissionError");
    check_refused("    import threading\n    threading.Thread(target=print).start()", bad, "can't start new thread");
    check_refused("    import subprocess; subprocess.run(['/bin/true'])", bad, "Error");
    check_refused("    import os; os.execv('/usr/bin/env', ['env'])", bad, "PermissionError");
    check_refused("    import os; os.execv('/usr/bin/python3', ['python3'])", bad, "PermissionError");
    check_refused("    import socket; socket.socket()", bad, "PermissionError");
    check_refused("    import socket; socket.socketpair()", bad, "PermissionError");
    check_refused("    import os; os.kill(os.getppid(), 9)", bad, "PermissionError");
    check_refused("    import os; os.setuid(0)", bad, "PermissionError");
    check_refused("    import ctypes; libc = ctypes.CDLL(None, use_errno=True)\n"
                  "    if libc.ptrace(16, 1, 0, 0) < 0 and libc.unshare(0x10000000) < 0 and libc.mount(0, b'/', 0, 32, 0) < 0 and "
                  "libc.prctl(22, 2, 0) < 0: raise OSError(ctypes.get_errno(), 'all closed')",
                  bad, "all closed");
}

static void it_sees_no_files_and_writes_none(void **state)
{
    const enum gd_grade_flag bad = GD_GRADE_PYTHON_RUNTIME;
    char path[] = "/tmp/graftd-sandbox-test-XXXXXX";
    int fd = mkstemp(path);
    assert_true(fd >= 0 && write(fd, "secret", 6) == 6);
    close(fd);
    char *body = gd_format("    open('%s').read()", path);
    check_refused(body, bad, "Error");
    gd_free(body);
    unlink(path);
    check_refused("    open('/etc/passwd').read()", bad, "Error");
    check_refused("    open('/proc/self/environ').read()", bad, "Error");
    check_refused("    import os; os.listdir('/home')", bad, "Error");
    check_refused("    open('/tmp/x', 'w')", bad, "Error");
    check_refused("    open('/usr/lib/x', 'w')", bad, "Error");
    check_refused("    import os; os.open('/tmp', os.O_TMPFILE | os.O_RDWR)", bad, "Error");
    check_refused("    import os; os.unlink('/usr/bin/python3')", bad, "Error");
    check_refused("    import os; os.memfd_create('x')", bad, "PermissionError");
    check_refused("    import os\n    held = [os.dup(0) for _ in range(1000)]", bad, "Too many open files");
    check_refused("    import os\n    for fd in range(5, 64):\n        try: os.fstat(fd)\n        except OSError: continue\n"
                  "        raise SystemError(f'inherited {fd}')\n    raise OSError('none inherited')",
                  bad, "none inherited");
}

static void it_knows_no_secret(void **state)
{
    setenv("GRAFTD_TEST_SECRET", "canary", 1);
    check_refused("    import os; raise OSError(sorted(os.environ))", GD_GRADE_PYTHON_RUNTIME,
                  "['LANG', 'OMP_NUM_THREADS', 'OPENBLAS_NUM_THREADS']");
    check_refused("    import os, ctypes; raise OSError(ctypes.string_at(ctypes.c_char_p.in_dll(ctypes.CDLL(None), 'environ'), 8) "
                  "and os.getenv('GRAFTD_TEST_SECRET', 'no secret'))",
                  GD_GRADE_PYTHON_RUNTIME, "no secret");
}

static void it_is_ended_when_it_takes_too_much(void **state)
{
    const enum gd_grade_flag bad = GD_GRADE_PYTHON_RUNTIME;
    double start = gd_time_monotonic();
    check_refused("    import time; time.sleep(60)", bad, "longer than 3 seconds");
    check_refused("    while True: pass", bad, "longer than 3 seconds");
    assert_true(gd_time_monotonic() - start < 20);
    check_refused("    x = bytearray(1 << 30)", bad, "MemoryError");
    check_refused("    x = []\n    while True: x.append('x' * 100000 + str(len(x)))", bad, "MemoryError");
    check_refused("    import os\n    while True: os.write(3, b'x' * 4096)", bad, "more than 65536 bytes");
    check_refused("    import os; os.write(3, b'{\"value\": ')", bad, "spoiled its own result");
    check_refused("    raise ValueError('x' * 10000000)", bad, "ValueError: xxx");
    check_refused("    import os; os.close(3)", bad, "without a result");
    check_refused("    import os; os.close(3)\n    while True: pass", bad, "ended by signal 9");
    check_refused("    import sys; sys.setrecursionlimit(1 << 30)\n    f = lambda: f()\n    x = []\n"
                  "    for _ in range(1000000): x = [x]\n    repr(x)",
                  bad, "");
}

/* Runs in a process of its own that a container may be: without namespaces, without Landlock, as somebody else. */
static void in_a_container(bool no_namespaces, bool no_landlock, bool no_root, const char *body, enum gd_grade_flag flag,
                           const char *said)
{
    pid_t pid = fork();
    if (pid == 0) {
        scmp_filter_ctx filter = seccomp_init(SCMP_ACT_ALLOW);
        int status = no_root && geteuid() == 0 ? setgroups(0, NULL) | setresgid(65533, 65533, 65533) | setresuid(65533, 65533, 65533)
                                               : 0;
        if (no_namespaces)
            status |= seccomp_rule_add(filter, SCMP_ACT_ERRNO(EPERM), SCMP_SYS(unshare), 0);
        if (no_landlock)
            status |= seccomp_rule_add(filter, SCMP_ACT_ERRNO(ENOSYS), SCMP_SYS(landlock_create_ruleset), 0);
        status |= seccomp_load(filter);
        if (status == 0)
            check_refused(body, flag, said);
        _exit(status == 0 ? 0 : 1);
    }
    int status = -1;
    assert_true(pid > 0 && waitpid(pid, &status, 0) == pid);
    assert_int_equal(status, 0);
}

static void either_wall_of_files_holds_alone_and_without_both_nothing_runs(void **state)
{
    const char *peek = "    import os, random\n    try: open('/etc/passwd')\n    except OSError: raise OSError('held')";
    for (int no_root = 0; no_root < 2; no_root++) {
        in_a_container(false, false, no_root, peek, GD_GRADE_PYTHON_RUNTIME, "OSError: held");
        in_a_container(true, false, no_root, peek, GD_GRADE_PYTHON_RUNTIME, "OSError: held");
        in_a_container(false, true, no_root, peek, GD_GRADE_PYTHON_RUNTIME, "OSError: held");
        in_a_container(true, true, no_root, peek, GD_GRADE_PYTHON_SERVER, "neither namespaces nor Landlock");
    }
}

static void it_is_refused_where_it_is_off_or_cannot_start(void **state)
{
    struct gd_error err = {0};
    struct gd_grade grade;
    configure(NULL);
    assert_null(grader_of("def grade(sample, item): return 1", &err));
    assert_int_equal(err.code, GD_UNSUPPORTED);
    assert_non_null(strstr(err.message, "graders.python"));
    configure("/nowhere/python3");
    run("def grade(sample, item): return 1", &grade);
    assert_true(grade.flags[GD_GRADE_PYTHON_SERVER]);
    assert_non_null(strstr(grade.error.message, "/nowhere/python3"));
    gd_grade_release(&grade);
    configure("/bin/true");
    run("def grade(sample, item): return 1", &grade);
    assert_int_not_equal(grade.error.code, GD_OK);
    gd_grade_release(&grade);
    configure(GD_SANDBOX_INTERPRETER);
}

int main(int argc, char **argv)
{
    if (argc > 1 && strcmp(argv[1], "sandbox") == 0)
        return gd_sandbox_main(argc, argv);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(it_grades_what_it_is_given),
        cmocka_unit_test(what_its_code_does_wrong_is_said_with_the_line),
        cmocka_unit_test(sources_are_checked_without_running_them),
        cmocka_unit_test(it_starts_nothing_and_reaches_nobody),
        cmocka_unit_test(it_sees_no_files_and_writes_none),
        cmocka_unit_test(it_knows_no_secret),
        cmocka_unit_test(it_is_ended_when_it_takes_too_much),
        cmocka_unit_test(either_wall_of_files_holds_alone_and_without_both_nothing_runs),
        cmocka_unit_test(it_is_refused_where_it_is_off_or_cannot_start),
    };
    return cmocka_run_group_tests(tests, setup, NULL);
}
