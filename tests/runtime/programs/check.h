/* What a program may expect of Linux, as named checks: one line of outcome each.
 *
 * The same program runs natively and in the sandbox; the lines must be equal. A check says what it
 * sees, errors by their names; nothing is judged here.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

static char outcome[1 << 16];
static size_t said;

static void say(const char *format, ...) {
    va_list list;
    va_start(list, format);
    said += vsnprintf(outcome + said, sizeof outcome - said, format, list);
    va_end(list);
    if (said < sizeof outcome - 1) {
        outcome[said++] = ' ';
        outcome[said] = 0;
    }
}

/* Say a result: its value, or the name of the error. */
static long result(const char *what, long value) {
    if (value < 0)
        say("%s=%s", what, strerrorname_np(errno));
    else
        say("%s=%ld", what, value);
    return value;
}

/* Say only whether it worked. */
static long works(const char *what, long value) {
    say("%s=%s", what, value < 0 ? strerrorname_np(errno) : "ok");
    return value;
}

static int make(const char *name, const void *data, size_t size) {
    int f = open(name, O_RDWR | O_CREAT | O_TRUNC, 0644);
    if (f < 0 || write(f, data, size) != (ssize_t)size)
        works(name, -1);
    return f;
}

static void put(const char *name, const void *data, size_t size) {
    close(make(name, data, size));
}

/* Bytes that depend on their place, so that moved data is seen. */
static void fill(unsigned char *data, size_t size, unsigned seed) {
    for (size_t n = 0; n < size; n++)
        data[n] = (unsigned char)((n * 2654435761u + seed) >> 13);
}

static unsigned long digest(const void *data, size_t size) {
    unsigned long hash = 5381;
    for (size_t n = 0; n < size; n++)
        hash = hash * 33 + ((const unsigned char *)data)[n];
    return hash;
}

/* Say size and digest of a whole file. */
static void show(const char *name) {
    int f = open(name, O_RDONLY);
    if (f < 0) {
        works(name, f);
        return;
    }
    unsigned long hash = 5381;
    long total = 0;
    static unsigned char piece[65536];
    for (ssize_t got; (got = read(f, piece, sizeof piece)) > 0; total += got)
        for (ssize_t n = 0; n < got; n++)
            hash = hash * 33 + piece[n];
    struct stat s;
    fstat(f, &s);
    say("%s:%ld/%ld:%lx", name, total, (long)s.st_size, hash);
    close(f);
}

static int ended(pid_t child) {
    int status = 0;
    if (waitpid(child, &status, 0) < 0)
        return -1;
    return WIFEXITED(status) ? WEXITSTATUS(status) : 1000 + WTERMSIG(status);
}

struct check {
    const char *name;
    void (*run)(void);
};

#define CHECK(name) static void name(void)
#define ENTRY(name) {#name, name}

/* Without capabilities, as in the sandbox: root may not pass what others may not. */
static void drop_capabilities(void) {
    struct {
        uint32_t version;
        int pid;
    } header = {0x20080522, 0};
    uint32_t none[6] = {0};
    syscall(SYS_capset, &header, none);
}

static int run_checks(const struct check *checks, int argc, char **argv) {
    int start = open(".", O_RDONLY | O_DIRECTORY);
    drop_capabilities();
    signal(SIGPIPE, SIG_IGN);
    for (; checks->name; checks++) {
        if (argc > 1 && strcmp(argv[1], checks->name))
            continue;
        said = 0;
        outcome[0] = 0;
        fflush(stdout);
        mkdir(checks->name, 0755); /* each in a directory of its own */
        chdir(checks->name);
        checks->run();
        fchdir(start);
        printf("%s: %s\n", checks->name, outcome);
    }
    return 0;
}
