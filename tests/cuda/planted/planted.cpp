/* The runner: every planted bug in a child process, four orders of threads each; what the child says is held against the
 * table. Without arguments all; --list names them; CASE NUMBER runs one and prints what it says. */
#include "tests/cuda/planted/planted.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <string>

static const planted_case *const cases[] = {&planted_norm, &planted_shrink, &planted_gemm, &planted_flash, &planted_quant, &planted_count,
                                            &planted_exchange};

void planted_run::compare(const char *name, int i, double got, double want, double bound)
{
    if (wrong[0] == '\0' && !(fabs(got - want) <= bound))
        snprintf(wrong, sizeof(wrong), "wrong numbers: %s[%d] is %.9g instead of %.9g", name, i, got, want);
}

/* In the child: all orders; prints the first thing that is wrong. */
static void run_orders(const planted_case *what, int bug)
{
    std::vector<unsigned char> first;
    std::string wrong, ordered;
    for (int order = 0; order < EMU_ORDER_COUNT; order++) {
        emu_settings settings = emu_configured();
        settings.order = (emu_order)order;
        settings.seed = 7;
        emu_configure(settings);
        planted_run run = {};
        run.bug = bug;
        what->run(run);
        if (emu_error()[0] != '\0' || sync_status() != cudaSuccess)
            return; /* the emulator has printed it */
        if (wrong.empty() && run.wrong[0] != '\0')
            wrong = run.wrong;
        if (order == 0)
            first = run.bits;
        else if (ordered.empty() && run.bits != first)
            ordered = "order: the bits differ between orders 0 and " + std::to_string(order);
    }
    if (!wrong.empty() || !ordered.empty())
        fprintf(stderr, "%s\n", !wrong.empty() ? wrong.c_str() : ordered.c_str());
}

static std::string outcome_of(const planted_case *what, int bug)
{
    int ends[2];
    fflush(NULL);
    if (pipe(ends) != 0)
        abort();
    pid_t child = fork();
    if (child == 0) {
        dup2(ends[1], 2);
        close(ends[0]);
        alarm(60);
        run_orders(what, bug);
        fflush(NULL);
        _exit(0);
    }
    close(ends[1]);
    std::string said;
    char part[4096];
    for (ssize_t got; (got = read(ends[0], part, sizeof(part))) > 0;)
        said.append(part, (size_t)got);
    close(ends[0]);
    int status;
    waitpid(child, &status, 0);
    if (WIFSIGNALED(status))
        said += "ended by signal " + std::to_string(WTERMSIG(status)) + "\n";
    else if (WEXITSTATUS(status) != 0)
        said += "ended with code " + std::to_string(WEXITSTATUS(status)) + "\n";
    return said;
}

static bool says(const std::string &said, const char *wanted) /* alternatives between | */
{
    std::string all = wanted;
    for (size_t from = 0; from <= all.size();) {
        size_t end = all.find('|', from);
        if (end == std::string::npos)
            end = all.size();
        if (said.find(all.substr(from, end - from)) != std::string::npos)
            return true;
        from = end + 1;
    }
    return false;
}

int main(int argc, char **argv)
{
    int found = 0, planted = 0, failed = 0, elsewhere = 0;
    for (const planted_case *what : cases) {
        std::string sound = argc == 1 ? outcome_of(what, 0) : "";
        if (!sound.empty()) {
            printf("FAIL %s without a bug: %s\n", what->name, sound.c_str());
            failed++;
        }
        for (int i = 0; i < what->bug_count; i++) {
            const planted_bug *bug = &what->bugs[i];
            if (argc == 2 && strcmp(argv[1], "--list") == 0) {
                printf("%-8s %2d  %s\n", what->name, bug->bug, bug->what);
                continue;
            }
            if (argc == 3 && (strcmp(argv[1], what->name) != 0 || atoi(argv[2]) != bug->bug))
                continue;
            std::string said = outcome_of(what, bug->bug);
            if (argc == 3)
                printf("%s", said.c_str());
            const char *wanted = emu_checks() ? bug->check : PLANTED_ASAN ? bug->asan : bug->fast;
            planted++;
            found += !said.empty();
            if (wanted[0] == '\0') {
                elsewhere += said.empty();
            } else if (!says(said, wanted)) {
                printf("FAIL %s %d (%s): '%s' instead of '%s'\n", what->name, bug->bug, bug->what, said.substr(0, 600).c_str(), wanted);
                failed++;
            }
        }
    }
    printf("%d of %d planted bugs found, %d left to another build, %d failed\n", found, planted, elsewhere, failed);
    return failed == 0 ? 0 : 1;
}
