/* Files and directories; run in an empty directory of its own. */
#include "check.h"
#include <dirent.h>
#include <limits.h>
#include <linux/falloc.h>
#include <pthread.h>
#include <setjmp.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/sendfile.h>
#include <sys/statvfs.h>
#include <sys/uio.h>
#include <sys/xattr.h>

static const size_t SIZES[] = {0,     1,     2,     15,      16,      17,     255,   256,   257,
                               1023,  1024,  1025,  65535,   65536,   65537,  1048575,
                               1048576, 1048577};
#define COUNT(a) (sizeof(a) / sizeof(a)[0])
static unsigned char data[1 << 21], back[1 << 21];

CHECK(open_close) {
    put("oc", "x", 1);
    int a = open("oc", O_RDONLY), b = open("oc", O_RDONLY), c = open("oc", O_RDWR);
    say("%d", a >= 0 && b >= 0 && c >= 0 && a != b);
    works("close", close(a));
    works("again", close(a));
    close(b);
    close(c);
    int w1 = open("oc-new", O_RDWR | O_CREAT | O_EXCL, 0664);
    int w2 = open("oc-new", O_RDWR);
    works("w1", w1);
    works("w2", w2);
    result("write", write(w1, "abc", 3));
    result("read", read(w2, back, 10));
    close(w1);
    close(w2);
    const char *modes[] = {"r", "w", "a", "r+", "w+", "a+", "wx", "rb", "x"};
    for (size_t n = 0; n < COUNT(modes); n++)
        for (int exists = 0; exists < 2; exists++) {
            const char *name = exists ? "oc" : "oc-missing";
            FILE *f = fopen(name, modes[n]);
            works(modes[n], f ? 0 : -1);
            if (f)
                fclose(f);
            unlink("oc-missing");
        }
}

CHECK(open_flags) {
    const int flags[] = {0,
                         O_CREAT,
                         O_CREAT | O_EXCL,
                         O_CREAT | O_TRUNC,
                         O_CREAT | O_EXCL | O_TRUNC,
                         O_TRUNC,
                         O_EXCL,
                         O_EXCL | O_TRUNC,
                         O_DIRECTORY,
                         O_CREAT | O_NOFOLLOW,
                         O_APPEND,
                         O_NOCTTY,
                         O_NONBLOCK,
                         O_SYNC,
                         O_DSYNC,
                         O_NOATIME,
                         O_CLOEXEC};
    const int modes[] = {O_RDONLY, O_WRONLY, O_RDWR};
    for (size_t m = 0; m < COUNT(modes); m++)
        for (size_t n = 0; n < COUNT(flags); n++)
            for (int exists = 0; exists < 2; exists++) {
                unlink("of");
                if (exists)
                    put("of", "0123456789", 10);
                int f = open("of", modes[m] | flags[n], 0600);
                struct stat s;
                say("%s/%ld", f < 0 ? strerrorname_np(errno) : "ok",
                    stat("of", &s) ? -1L : (long)s.st_size);
                if (f >= 0) {
                    say("%x", fcntl(f, F_GETFL) & (O_ACCMODE | O_APPEND | O_NONBLOCK | O_SYNC));
                    close(f);
                }
            }
    works("dir", open(".", O_RDONLY));
    works("dir-w", open(".", O_WRONLY));
    works("dir-creat", open(".", O_RDONLY | O_CREAT, 0600));
    works("slash", open("of/", O_RDONLY));
    works("below", open("of/x", O_RDONLY));
    works("empty", open("", O_RDONLY));
    works("missing/x", open("missing/x", O_RDWR | O_CREAT, 0600));
    works("new/", open("new/", O_RDWR | O_CREAT, 0600));
}

CHECK(read_write) {
    for (size_t n = 0; n < COUNT(SIZES); n++) {
        size_t size = SIZES[n];
        fill(data, size, n);
        int f = make("rw", data, size);
        result("tell", lseek(f, 0, SEEK_CUR));
        lseek(f, 0, SEEK_SET);
        result("read", read(f, back, sizeof back));
        say("%d", !memcmp(data, back, size));
        result("end", read(f, back, 10));
        result("past", pread(f, back, 10, size + 100000));
        result("pwrite", pwrite(f, "mid", 3, size / 2));
        result("pread", pread(f, back, 3, size / 2));
        result("wrong", read(f, (void *)8, 10));
        close(f);
        show("rw");
    }
    int r = open("rw", O_RDONLY), w = open("rw", O_WRONLY);
    result("write to r", write(r, "x", 1));
    result("read of w", read(w, back, 1));
    result("negative", pread(r, back, 1, -1));
    result("readv", readv(r, (struct iovec[]){{back, 3}, {back + 3, 70000}}, 2));
    result("writev", writev(w, (struct iovec[]){{data, 5}, {data, 70000}}, 2));
    result("preadv2", preadv2(r, (struct iovec[]){{back, 3}}, 1, 5, 0));
    show("rw");
}

CHECK(read_write_mmap) {
    size_t size = 1 << 20;
    fill(data, size, 3);
    int f = make("rwm", data, size), g = open("rwm", O_RDWR);
    unsigned char *map = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, f, 0);
    works("mmap", map == MAP_FAILED ? -1 : 0);
    say("%d", !memcmp(map, data, size));
    map[12345] = 'm';
    pread(f, back, 1, 12345);
    pread(g, back + 1, 1, 12345);
    say("%c%c", back[0], back[1]);
    pwrite(f, "w", 1, 54321);
    say("%c", map[54321]);
    pwrite(g, "v", 1, 54322);
    say("%c", map[54322]);
    works("msync", msync(map, size, MS_SYNC));
    works("msync async", msync(map, size, MS_ASYNC));
    map[size - 1] = 'e';
    works("munmap", munmap(map, size));
    close(f);
    close(g);
    show("rwm");
    f = open("rwm", O_RDONLY);
    works("shared write of a read-only file",
          mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, f, 0) == MAP_FAILED ? -1 : 0);
    unsigned char *own = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE, f, 0);
    own[0] = 'p';
    pread(f, back, 1, 0);
    say("%d", back[0] != 'p');
    works("offset", mmap(NULL, 4096, PROT_READ, MAP_SHARED, f, 100) == MAP_FAILED ? -1 : 0);
    unsigned char *part = mmap(NULL, 8192, PROT_READ, MAP_SHARED, f, 65536);
    pread(f, back, 8192, 65536);
    say("%d", !memcmp(part, back, 8192));
    unsigned char *grown = mremap(part, 8192, 16384, MREMAP_MAYMOVE);
    pread(f, back, 16384, 65536);
    say("%d", grown != MAP_FAILED && !memcmp(grown, back, 16384));
    works("madvise", madvise(grown, 16384, MADV_DONTNEED));
    say("%d", !memcmp(grown, back, 16384));
    munmap(grown, 16384);
    munmap(own, size);
    close(f);
}

CHECK(mmap_processes) {
    fill(data, 40000, 9);
    int f = make("mp", data, 40000);
    char *map = mmap(NULL, 40960, PROT_READ | PROT_WRITE, MAP_SHARED, f, 0);
    pid_t child = fork();
    if (!child) {
        int g = open("mp", O_RDWR);
        char *other = mmap(NULL, 40960, PROT_READ | PROT_WRITE, MAP_SHARED, g, 0);
        other[100] = 'A';
        map[5000] = 'B';
        pwrite(g, "C", 1, 9000);
        _exit(0);
    }
    say("%d", ended(child));
    say("%c%c%c", map[100], map[5000], map[9000]);
    pread(f, back, 9001, 0);
    say("%c%c%c", back[100], back[5000], back[9000]);
    say("%d %d", map[40000], map[40959]);
    map[40010] = 'z'; /* past the end, in its page: never reaches the file */
    munmap(map, 40960);
    close(f);
    show("mp");
}

static sigjmp_buf at_fault;
static void on_fault(int number) {
    siglongjmp(at_fault, number);
}

CHECK(mmap_past_the_end) {
    int f = make("mpe", data, 5000);
    volatile char *map = mmap(NULL, 16384, PROT_READ | PROT_WRITE, MAP_SHARED, f, 0);
    signal(SIGBUS, on_fault);
    int number = sigsetjmp(at_fault, 1);
    if (!number) {
        map[9000] = 1;
        say("no fault");
    } else
        say("%s", sigabbrev_np(number));
    ftruncate(f, 100);
    number = sigsetjmp(at_fault, 1);
    if (!number) {
        say("%d", map[200]);
        map[4500] = 1;
        say("no fault");
    } else
        say("%s", sigabbrev_np(number));
    ftruncate(f, 16384);
    map[9000] = 7;
    say("%d", map[9000]);
    signal(SIGBUS, SIG_DFL);
    munmap((void *)map, 16384);
    close(f);
    show("mpe");
}

CHECK(append) {
    int f = open("ap", O_RDWR | O_CREAT | O_APPEND, 0644);
    result("write", write(f, "one", 3));
    lseek(f, 0, SEEK_SET);
    result("write", write(f, "two", 3));
    result("tell", lseek(f, 0, SEEK_CUR));
    result("pwrite", pwrite(f, "three", 5, 0));
    int g = open("ap", O_WRONLY | O_APPEND), h = open("ap", O_WRONLY);
    write(g, "four", 4);
    write(f, "five", 4);
    write(h, "X", 1);
    fcntl(h, F_SETFL, O_APPEND);
    write(h, "six", 3);
    ftruncate(f, 5);
    write(g, "end", 3);
    close(f);
    close(g);
    close(h);
    show("ap");
}

CHECK(seek_tell) {
    fill(data, 10000, 1);
    int f = make("st", data, 10000);
    result("end", lseek(f, 0, SEEK_END));
    result("set", lseek(f, 100, SEEK_SET));
    result("cur", lseek(f, -50, SEEK_CUR));
    result("before", lseek(f, -51, SEEK_CUR));
    result("whence", lseek(f, 0, 17));
    result("beyond", lseek(f, 4098, SEEK_END));
    result("read", read(f, back, 1));
    result("write", write(f, "", 1));
    close(f);
    show("st");
    FILE *s = fopen("st", "r+");
    fseek(s, 0, SEEK_END);
    say("%ld", ftell(s));
    rewind(s);
    say("%ld %d", ftell(s), fgetc(s));
    fseek(s, 4098, SEEK_END);
    fputc('e', s);
    fclose(s);
    show("st");
}

CHECK(delete_files) {
    put("d1", "x", 1);
    works("closed", unlink("d1"));
    works("gone", open("d1", O_RDONLY));
    int f = make("d2", "0123456789", 10);
    close(f);
    works("after close", unlink("d2"));
    f = make("d3", "0123456789", 10);
    works("open", unlink("d3"));
    struct stat s;
    works("stat", stat("d3", &s));
    works("fstat", fstat(f, &s));
    say("%ld links=%ld", (long)s.st_size, (long)s.st_nlink);
    result("pread", pread(f, back, 10, 0));
    result("pwrite", pwrite(f, "more", 4, 10));
    works("ftruncate", ftruncate(f, 5000));
    works("fchmod", fchmod(f, 0600));
    works("fchown", fchown(f, getuid(), getgid()));
    works("futimens", futimens(f, NULL));
    fstat(f, &s);
    say("%ld %o", (long)s.st_size, s.st_mode);
    char name[64];
    snprintf(name, sizeof name, "/proc/self/fd/%d", f);
    int g = open(name, O_RDWR);
    works("reopened", g);
    result("pread", pread(g, back, 14, 0));
    say("%.14s", back);
    put("d3", "other", 5);
    fstat(f, &s);
    say("%ld", (long)s.st_size);
    close(f);
    close(g);
    show("d3");
    works("twice", unlink("d1"));
    mkdir("d4", 0755);
    works("directory", unlink("d4"));
    works("rmdir of a file", rmdir("d3"));
    works("dot", rmdir("d4/."));
    int d = open("d4", O_RDONLY);
    works("rmdir", rmdir("d4"));
    works("create in removed", openat(d, "x", O_RDWR | O_CREAT, 0600));
    fstat(d, &s);
    say("links=%ld", (long)s.st_nlink);
    close(d);
    put("d5", "x", 1);
    works("unlinkat", unlinkat(AT_FDCWD, "d5", 0));
    works("removedir", unlinkat(AT_FDCWD, "d3", AT_REMOVEDIR));
    works("", unlink(""));
}

CHECK(stat_sizes) {
    struct stat s, t;
    for (size_t n = 0; n < COUNT(SIZES); n++) {
        put("ss", data, SIZES[n]);
        stat("ss", &s);
        int f = open("ss", O_RDONLY);
        fstat(f, &t);
        say("%ld/%ld", (long)s.st_size, (long)t.st_size);
        say("%d", s.st_ino == t.st_ino && s.st_dev == t.st_dev);
        close(f);
    }
    lstat("ss", &s);
    say("%o links=%ld own=%d,%d", s.st_mode, (long)s.st_nlink, s.st_uid == getuid(),
        s.st_gid == getgid());
    works("fault", stat((char *)8, &s));
    works("missing", stat("no", &s));
    works("below", stat("ss/x", &s));
    works("fd", fstat(-1, &s));
    works("cwd", fstatat(AT_FDCWD, "", &s, AT_EMPTY_PATH));
    say("%d", S_ISDIR(s.st_mode));
    struct statx x;
    works("statx", statx(AT_FDCWD, "ss", 0, STATX_BASIC_STATS, &x));
    say("%lld %o %d", (long long)x.stx_size, x.stx_mode,
        (x.stx_mask & STATX_BASIC_STATS) == STATX_BASIC_STATS);
    struct statvfs v;
    works("statvfs", statvfs(".", &v));
    say("namemax=%lu", v.f_namemax);
    works("access", access("ss", R_OK | W_OK));
    works("execute", access("ss", X_OK));
    works("faccessat", faccessat(AT_FDCWD, "ss", R_OK, AT_EACCESS));
}

CHECK(modes) {
    struct stat s;
    put("cm", "x", 1);
    const int tries[] = {0644, 0600, 0400, 0755, 0777, 0200, 0444, 0666, 01644};
    for (size_t n = 0; n < COUNT(tries); n++) {
        works("chmod", chmod("cm", tries[n] | 0600));
        stat("cm", &s);
        say("%o", s.st_mode);
    }
    int f = open("cm", O_RDWR);
    works("fchmod", fchmod(f, 0640));
    fstat(f, &s);
    say("%o", s.st_mode);
    works("fchmodat", fchmodat(AT_FDCWD, "cm", 0755, 0));
    stat("cm", &s);
    say("%o", s.st_mode);
    works("missing", chmod("no", 0644));
    close(f);
    mkdir("cd", 0700);
    works("dir", chmod("cd", 0750));
    stat("cd", &s);
    say("%o", s.st_mode);
    works("chown", chown("cm", getuid(), getgid()));
    works("chown -1", chown("cm", -1, -1));
    works("lchown", lchown("cm", getuid(), -1));
    umask(077);
    close(open("cu", O_CREAT | O_WRONLY, 0666));
    mkdir("cv", 0777);
    stat("cu", &s);
    say("%o", s.st_mode);
    stat("cv", &s);
    say("%o", s.st_mode);
    umask(022);
}

static void truncate_one(long from, long to) {
    fill(data, 1 << 20, from);
    for (int by_handle = 0; by_handle < 2; by_handle++) {
        int f = make("tr", data, from);
        works("truncate", by_handle ? ftruncate(f, to) : truncate("tr", to));
        struct stat s;
        fstat(f, &s);
        result("tell", lseek(f, 0, SEEK_CUR));
        say("%ld", (long)s.st_size);
        close(f);
        show("tr");
    }
}

CHECK(truncate_matrix) {
    const long pairs[][2] = {{0, 1},     {0, 16},     {0, 65537},    {1, 0},      {1, 17},
                             {16, 0},    {16, 1048576}, {255, 15},   {255, 256},  {65537, 65535},
                             {65537, 65536}, {1048577, 1}, {4096, 4097}, {8192, 3072}};
    for (size_t n = 0; n < COUNT(pairs); n++)
        truncate_one(pairs[n][0], pairs[n][1]);
    works("negative", truncate("tr", -1));
    works("missing", truncate("no", 1));
    works("directory", truncate(".", 1));
    int r = open("tr", O_RDONLY);
    works("read-only", ftruncate(r, 1));
    close(r);
}

CHECK(seek_tell_truncate) {
    const long tries[][3] = {{0, 0, 100},   {512, 512, 65536}, {512, 64, 65536},
                             {512, 512, 0}, {512, 256, 0},     {31337, 20000, 7331}};
    for (size_t n = 0; n < COUNT(tries); n++) {
        fill(data, tries[n][0], n);
        int f = make("stt", data, tries[n][0]);
        lseek(f, tries[n][1], SEEK_SET);
        works("ftruncate", ftruncate(f, tries[n][2]));
        result("tell", lseek(f, 0, SEEK_CUR));
        result("read", read(f, back, 100));
        result("write", write(f, "end", 3));
        close(f);
        show("stt");
    }
}

static void copy(const char *way, size_t size) {
    fill(data, size, size);
    int from = make("cf", data, size), to = open("ct", O_RDWR | O_CREAT | O_TRUNC, 0644);
    if (!strcmp(way, "whole"))
        pwrite(to, data, size, 0);
    else if (!strcmp(way, "seq"))
        for (size_t at = 0; at < size; at += 4097)
            pwrite(to, back, pread(from, back, 4097, at), at);
    else if (!strcmp(way, "rev"))
        for (size_t end = size; end > 0;) {
            size_t piece = end < 4097 ? end : 4097;
            pread(from, back, piece, end - piece);
            pwrite(to, back, piece, end - piece);
            end -= piece;
        }
    else if (!strcmp(way, "sendfile")) {
        off_t at = 0;
        while (sendfile(to, from, &at, size) > 0)
            ;
    } else if (!strcmp(way, "range")) {
        loff_t at = 0;
        while (copy_file_range(from, &at, to, NULL, size + 10, 0) > 0)
            ;
    } else if (size) {
        ftruncate(to, size);
        char *a = mmap(NULL, size, PROT_READ, MAP_SHARED, from, 0);
        char *b = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, to, 0);
        if (a == MAP_FAILED || b == MAP_FAILED)
            works("mmap", -1);
        else if (!strcmp(way, "mmap-rev"))
            for (size_t n = size; n-- > 0;)
                b[n] = a[n];
        else
            memcpy(b, a, size);
        munmap(a, size);
        munmap(b, size);
    }
    close(from);
    close(to);
    show("ct");
}

CHECK(copies) {
    const char *ways[] = {"whole", "seq", "rev", "sendfile", "range", "mmap", "mmap-rev"};
    for (size_t w = 0; w < COUNT(ways); w++) {
        say("%s", ways[w]);
        for (size_t n = 0; n < COUNT(SIZES); n++)
            copy(ways[w], SIZES[n]);
    }
}

static int by_name(const void *a, const void *b) {
    return strcmp(*(char *const *)a, *(char *const *)b);
}

/* List a directory; return how many names it had, and say the digest of the sorted names. */
static int list(const char *path) {
    static char *names[40000];
    DIR *d = opendir(path);
    if (!d)
        return works(path, -1);
    int count = 0, kinds = 0;
    errno = 0;
    for (struct dirent *e; (e = readdir(d));) {
        names[count++] = strdup(e->d_name);
        kinds += e->d_type;
    }
    if (errno)
        works("readdir", -1);
    closedir(d);
    qsort(names, count, sizeof *names, by_name);
    unsigned long hash = 5381;
    for (int n = 0; n < count; n++) {
        hash = hash * 31 + digest(names[n], strlen(names[n]));
        if (n && !strcmp(names[n], names[n - 1]))
            say("twice: %s", names[n]);
    }
    for (int n = 0; n < count; n++)
        free(names[n]);
    say("%d names %lx kinds %d", count, hash, kinds);
    return count;
}

static void large_directory(int entries) {
    char name[64];
    mkdir("large", 0755);
    for (int n = 0; n < entries; n++) {
        snprintf(name, sizeof name, "large/entry-number-%07d", n);
        close(open(name, O_CREAT | O_WRONLY, 0644));
    }
    list("large");
    DIR *d = opendir("large");
    long places[10];
    char seen[10][256];
    for (int n = 0; n < entries; n++) {
        if (n % (entries / 10) == 0 && n / (entries / 10) < 10) {
            places[n / (entries / 10)] = telldir(d);
            struct dirent *e = readdir(d);
            strcpy(seen[n / (entries / 10)], e ? e->d_name : "-");
        } else
            readdir(d);
    }
    int same = 0;
    for (int n = 9; n >= 0; n--) {
        seekdir(d, places[n]);
        struct dirent *e = readdir(d);
        same += e && !strcmp(e->d_name, seen[n]);
    }
    say("seekdir %d", same);
    rewinddir(d);
    int count = 0;
    while (readdir(d))
        count++;
    say("rewound %d", count);
    /* Removing what was just listed must not hide what comes later. */
    rewinddir(d);
    int removed = 0;
    for (struct dirent *e; (e = readdir(d));)
        if (e->d_name[0] != '.')
            removed += !unlinkat(dirfd(d), e->d_name, 0);
    say("removed %d", removed);
    closedir(d);
    works("rmdir", rmdir("large"));
}

CHECK(large_directories) {
    large_directory(3000);
}

CHECK(very_large_directories) {
    large_directory(30000);
}

CHECK(getdents_and_lseek) {
    mkdir("gd", 0755);
    for (int n = 0; n < 300; n++) {
        char name[64];
        snprintf(name, sizeof name, "gd/%d", n);
        close(open(name, O_CREAT | O_WRONLY, 0644));
    }
    int d = open("gd", O_RDONLY | O_DIRECTORY);
    int count = 0;
    char buffer[1024];
    for (long got; (got = syscall(SYS_getdents64, d, buffer, sizeof buffer)) > 0;)
        for (long at = 0; at < got; count++)
            at += *(unsigned short *)(buffer + at + 16);
    say("%d", count);
    result("end", syscall(SYS_getdents64, d, buffer, sizeof buffer));
    result("rewind", lseek(d, 0, SEEK_SET));
    put("gd/late", "x", 1);
    unlink("gd/7");
    int again = 0, late = 0, seven = 0;
    for (long got; (got = syscall(SYS_getdents64, d, buffer, sizeof buffer)) > 0;)
        for (long at = 0; at < got; again++) {
            late += !strcmp(buffer + at + 19, "late");
            seven += !strcmp(buffer + at + 19, "7");
            at += *(unsigned short *)(buffer + at + 16);
        }
    say("%d late=%d seven=%d", again, late, seven);
    result("small", (lseek(d, 0, SEEK_SET), syscall(SYS_getdents64, d, buffer, 10)));
    result("read", read(d, buffer, 10));
    close(d);
    int f = open("gd/late", O_RDONLY);
    result("file", syscall(SYS_getdents64, f, buffer, sizeof buffer));
    close(f);
}

CHECK(large_file) {
    int f = open("lf", O_RDWR | O_CREAT | O_TRUNC, 0644);
    off_t far = (5L << 30) + 123;
    result("pwrite", pwrite(f, "far", 3, far));
    result("end", lseek(f, 0, SEEK_END));
    result("pread", pread(f, back, 10, far));
    say("%.3s", back);
    result("hole", pread(f, back, 4096, 4L << 30));
    say("%d", back[0] | back[4095]);
    works("ftruncate", ftruncate(f, (4L << 30) + 1));
    struct stat s;
    stat("lf", &s);
    say("%ld", (long)s.st_size);
    char *map = mmap(NULL, 4096, PROT_READ, MAP_SHARED, f, 4L << 30);
    say("%d", map == MAP_FAILED ? -1 : map[0]);
    close(f);
    unlink("lf");
}

CHECK(renames) {
    struct stat s;
    put("r1", "one", 3);
    put("r2", "two", 3);
    works("over", rename("r1", "r2"));
    works("old", stat("r1", &s));
    show("r2");
    works("itself", rename("r2", "r2"));
    works("missing", rename("r1", "r3"));
    mkdir("rd", 0755);
    mkdir("re", 0755);
    put("rd/x", "x", 1);
    works("into", rename("r2", "rd/r2"));
    works("back", rename("rd/r2", "r2"));
    works("file over directory", rename("r2", "re"));
    works("directory over file", rename("re", "r2"));
    works("over full directory", rename("re", "rd"));
    works("into itself", rename("rd", "rd/below"));
    works("directory over empty", rename("rd", "re"));
    show("re/x");
    works("directory", rename("re", "rf"));
    show("rf/x");
    works("gone", stat("re/x", &s));
    mkdir("rg", 0755);
    mkdir("rf/deep", 0755);
    put("rf/deep/file", "deep", 4);
    int open_one = open("rf/deep/file", O_RDWR);
    works("directory into another", rename("rf", "rg/rf"));
    show("rg/rf/deep/file");
    result("write", pwrite(open_one, "DEEP", 4, 0));
    works("close", close(open_one));
    show("rg/rf/deep/file");
    list("rg/rf");
    int f = open("r2", O_RDWR);
    put("r4", "four", 4);
    works("over an open file", rename("r4", "r2"));
    fstat(f, &s);
    say("links=%ld", (long)s.st_nlink);
    result("read", pread(f, back, 10, 0));
    result("write", pwrite(f, "gone", 4, 0));
    works("fchown", fchown(f, getuid(), -1));
    close(f);
    show("r2");
    f = open("r2", O_RDWR);
    works("while open", rename("r2", "r5"));
    result("write", write(f, "FIVE", 4));
    put("r2", "new", 3);
    close(f);
    show("r5");
    show("r2");
    works("noreplace", renameat2(AT_FDCWD, "r5", AT_FDCWD, "r2", RENAME_NOREPLACE));
    works("noreplace new", renameat2(AT_FDCWD, "r5", AT_FDCWD, "r6", RENAME_NOREPLACE));
    show("r6");
    works("dot", rename(".", "rz"));
}

CHECK(exchanges) {
    put("r6", "five", 4);
    put("r2", "new", 3);
    mkdir("rg", 0755);
    mkdir("rg/rf", 0755);
    put("rg/rf/x", "x", 1);
    works("exchange", renameat2(AT_FDCWD, "r6", AT_FDCWD, "r2", RENAME_EXCHANGE));
    show("r6");
    show("r2");
    works("exchange with missing", renameat2(AT_FDCWD, "r6", AT_FDCWD, "r9", RENAME_EXCHANGE));
    works("both", renameat2(AT_FDCWD, "r6", AT_FDCWD, "r2", RENAME_EXCHANGE | RENAME_NOREPLACE));
    works("exchange with directory", renameat2(AT_FDCWD, "r6", AT_FDCWD, "rg", RENAME_EXCHANGE));
    show("rg");
    show("r6/rf/x");
    works("slash", rename("rg/", "rh"));
}

CHECK(rename_unlink) {
    /* What editors, databases and package managers do. */
    for (int n = 0; n < 20; n++) {
        char text[32];
        snprintf(text, sizeof text, "version %d", n);
        put("ru.tmp", text, strlen(text));
        rename("ru.tmp", "ru");
        int f = open("ru", O_RDWR);
        unlink("ru");
        pwrite(f, "V", 1, 0);
        memset(back, 0, 32);
        pread(f, back, 32, 0);
        say("%s", back);
        close(f);
    }
    put("ru", "again", 5);
    show("ru");
    int f = open("ru", O_RDWR);
    put("ru2", "second", 6);
    rename("ru2", "ru");
    unlink("ru");
    result("read", pread(f, back, 10, 0));
    close(f);
    works("gone", open("ru", O_RDONLY));
}

CHECK(links) {
    struct stat s, t;
    put("l1", "one file", 8);
    works("link", link("l1", "l2"));
    works("exists", link("l1", "l2"));
    works("missing", link("l0", "l3"));
    works("directory", link(".", "l3"));
    stat("l1", &s);
    stat("l2", &t);
    say("%ld %ld %d", (long)s.st_nlink, (long)t.st_nlink, s.st_ino == t.st_ino);
    int f = open("l2", O_RDWR);
    pwrite(f, "ONE", 3, 0);
    close(f);
    show("l1");
    works("unlink", unlink("l1"));
    show("l2");
    mkdir("ld", 0755);
    works("elsewhere", link("l2", "ld/l4"));
    works("same file", rename("l2", "ld/l4"));
    works("still", access("l2", F_OK));
    works("rename", rename("l2", "l5"));
    f = open("ld/l4", O_RDWR | O_APPEND);
    write(f, "!", 1);
    close(f);
    show("l5");
    stat("l5", &s);
    say("%ld", (long)s.st_nlink);
    f = open("l5", O_RDONLY);
    works("follow", linkat(AT_FDCWD, "l5", AT_FDCWD, "l6", AT_SYMLINK_FOLLOW));
    unlink("l5");
    unlink("l6");
    unlink("ld/l4");
    fstat(f, &s);
    say("%ld", (long)s.st_nlink);
    close(f);
}

CHECK(symlinks) {
    struct stat s;
    char text[PATH_MAX];
    mkdir("sl", 0755);
    put("sl/target", "reached", 7);
    works("symlink", symlink("target", "sl/near"));
    works("exists", symlink("x", "sl/near"));
    works("empty", symlink("", "sl/empty"));
    works("dangling", symlink("nowhere", "sl/dangling"));
    works("loop", symlink("loop", "sl/loop"));
    works("up", symlink("../sl/target", "sl/up"));
    works("dir", symlink("../sl", "sl/dir"));
    show("sl/near");
    show("sl/up");
    show("sl/dir/dir/near");
    works("open dangling", open("sl/dangling", O_RDONLY));
    works("open loop", open("sl/loop", O_RDONLY));
    works("nofollow", open("sl/near", O_RDONLY | O_NOFOLLOW));
    ssize_t got = readlink("sl/near", text, sizeof text);
    say("%.*s", (int)(got > 0 ? got : 0), text);
    result("short", readlink("sl/near", text, 3));
    result("no link", readlink("sl/target", text, sizeof text));
    lstat("sl/near", &s);
    say("%d %ld", S_ISLNK(s.st_mode), (long)s.st_size);
    int f = open("sl/dangling", O_WRONLY | O_CREAT, 0644);
    works("create through", f);
    close(f);
    show("sl/nowhere");
    works("rename", rename("sl/near", "sl/moved"));
    show("sl/moved");
    works("link of link", linkat(AT_FDCWD, "sl/moved", AT_FDCWD, "sl/second", 0));
    lstat("sl/second", &s);
    say("%d", S_ISLNK(s.st_mode));
    works("utime", utimensat(AT_FDCWD, "sl/moved", NULL, AT_SYMLINK_NOFOLLOW));
    list("sl");
    works("rmdir of link", rmdir("sl/dir"));
    works("unlink", unlink("sl/dir"));
    memset(text, 'a', sizeof text);
    text[4000] = 0;
    works("long", symlink(text, "sl/long"));
    result("length", readlink("sl/long", text, sizeof text));
    works("chmod through", chmod("sl/moved", 0600));
    stat("sl/target", &s);
    say("%o", s.st_mode);
}

static struct flock range(int type, long start, long length) {
    struct flock lock = {.l_type = type, .l_whence = SEEK_SET, .l_start = start, .l_len = length};
    return lock;
}

static int in_child(int f, int command, struct flock lock) {
    pid_t child = fork();
    if (!child) {
        if (fcntl(f, command, &lock) < 0)
            _exit(errno);
        _exit(command == F_GETLK ? 100 + lock.l_type : 0);
    }
    return ended(child);
}

CHECK(record_locks) {
    int f = make("lk", data, 4096);
    struct flock lock = range(F_WRLCK, 100, 100);
    works("lock", fcntl(f, F_SETLK, &lock));
    say("%d", in_child(f, F_SETLK, range(F_WRLCK, 150, 10)));
    say("%d", in_child(f, F_SETLK, range(F_RDLCK, 150, 10)));
    say("%d", in_child(f, F_SETLK, range(F_WRLCK, 200, 10)));
    say("%d", in_child(f, F_GETLK, range(F_WRLCK, 0, 0)));
    say("%d", in_child(f, F_GETLK, range(F_WRLCK, 0, 100)));
    lock = range(F_UNLCK, 120, 20);
    works("split", fcntl(f, F_SETLK, &lock));
    say("%d", in_child(f, F_SETLK, range(F_WRLCK, 125, 5)));
    say("%d", in_child(f, F_SETLK, range(F_WRLCK, 145, 5)));
    lock = range(F_RDLCK, 0, 0);
    works("down", fcntl(f, F_SETLK, &lock));
    say("%d", in_child(f, F_SETLK, range(F_RDLCK, 0, 0)));
    say("%d", in_child(f, F_SETLK, range(F_WRLCK, 4000, 1)));
    int other = open("lk", O_RDONLY);
    close(other); /* closing any descriptor drops the process's locks */
    say("%d", in_child(f, F_SETLK, range(F_WRLCK, 0, 0)));
    lock = range(F_WRLCK, 0, 10);
    fcntl(f, F_SETLK, &lock);
    int ready[2];
    pipe(ready);
    pid_t child = fork();
    if (!child) {
        struct flock mine = range(F_WRLCK, 5, 1);
        write(ready[1], "r", 1);
        int code = fcntl(f, F_SETLKW, &mine) < 0 ? errno : 0;
        _exit(code);
    }
    read(ready[0], back, 1);
    usleep(50000);
    result("waits", waitpid(child, NULL, WNOHANG));
    lock = range(F_UNLCK, 0, 0);
    fcntl(f, F_SETLK, &lock);
    say("%d", ended(child));
    struct flock open_file = range(F_WRLCK, 0, 0);
    int a = open("lk", O_RDWR), b = open("lk", O_RDWR);
    works("ofd", fcntl(a, F_OFD_SETLK, &open_file));
    open_file = range(F_WRLCK, 0, 0);
    works("ofd busy", fcntl(b, F_OFD_SETLK, &open_file));
    close(a);
    open_file = range(F_WRLCK, 0, 0);
    works("ofd free", fcntl(b, F_OFD_SETLK, &open_file));
    close(b);
    close(f);
}

CHECK(whole_file_locks) {
    put("fl", "x", 1);
    int a = open("fl", O_RDWR), b = open("fl", O_RDWR);
    works("shared", flock(a, LOCK_SH));
    works("shared too", flock(b, LOCK_SH | LOCK_NB));
    works("upgrade", flock(a, LOCK_EX | LOCK_NB));
    works("unlock", flock(b, LOCK_UN));
    works("exclusive", flock(a, LOCK_EX | LOCK_NB));
    works("busy", flock(b, LOCK_SH | LOCK_NB));
    int c = dup(a);
    close(a);
    works("still busy", flock(b, LOCK_SH | LOCK_NB));
    close(c);
    works("free", flock(b, LOCK_EX | LOCK_NB));
    pid_t child = fork();
    if (!child) {
        int d = open("fl", O_RDWR);
        int busy = flock(d, LOCK_EX | LOCK_NB) < 0;
        close(b); /* shared with the parent: does not unlock */
        busy += flock(d, LOCK_EX | LOCK_NB) < 0;
        _exit(busy);
    }
    say("%d", ended(child));
    close(b);
}

CHECK(many_descriptors) {
    int files[400];
    char name[32];
    for (int n = 0; n < 400; n++) {
        snprintf(name, sizeof name, "fd-%d", n % 50);
        files[n] = open(name, O_RDWR | O_CREAT, 0644);
        if (files[n] < 0)
            works(name, -1);
    }
    for (int n = 0; n < 400; n++)
        pwrite(files[n], "0123456789abcdefghijklmnopqrst", n % 30, n);
    for (int n = 0; n < 400; n++)
        close(files[n]);
    for (int n = 0; n < 3000; n++) {
        int f = open("fd-0", O_RDONLY);
        if (f != files[0])
            say("leak %d", f);
        close(f);
    }
    show("fd-7");
}

CHECK(long_names) {
    char name[400], path[5000] = "";
    struct stat s;
    memset(name, 'n', sizeof name);
    name[255] = 0;
    put(name, "long", 4);
    show(name);
    works("unlink", unlink(name));
    name[255] = 'n';
    name[256] = 0;
    works("256", open(name, O_RDWR | O_CREAT, 0644));
    works("mkdir", mkdir(name, 0755));
    works("stat", stat(name, &s));
    name[200] = 0;
    works("recovery", open(strcat(name, ".gramine.recover"), O_RDWR | O_CREAT, 0644));
    name[200] = 0;
    for (int n = 0; n < 21; n++) {
        strcat(path, name);
        strcat(path, "/");
    }
    works("path", open(path, O_RDONLY));
    const char *odd[] = {" ", "a\nb", "\xff\xfe", "\xc3\xbc", "-x", "..x", "a\\b", "*", "~", "%s"};
    for (size_t n = 0; n < COUNT(odd); n++) {
        put(odd[n], odd[n], strlen(odd[n]));
        works("odd", stat(odd[n], &s));
        works("unlink", unlink(odd[n]));
    }
}

CHECK(deep_paths) {
    char name[400], path[5000] = "";
    memset(name, 'n', sizeof name);
    name[100] = 0;
    char start[PATH_MAX];
    getcwd(start, sizeof start);
    int depth = 0;
    while (depth < 30 && !mkdir(name, 0755) && !chdir(name))
        depth++;
    say("%d", depth);
    put("deep", "down", 4);
    show("deep");
    unlink("deep");
    for (int n = 0; n < depth; n++) {
        chdir("..");
        rmdir(name);
    }
    say("%d", !strcmp(start, getcwd(path, sizeof path)));
}

CHECK(fifos) {
    struct stat s;
    works("mkfifo", mkfifo("ff", 0644));
    works("exists", mkfifo("ff", 0644));
    stat("ff", &s);
    say("%o %ld", s.st_mode, (long)s.st_size);
    works("no reader", open("ff", O_WRONLY | O_NONBLOCK));
    pid_t child = fork();
    if (!child) {
        int w = open("ff", O_WRONLY);
        write(w, "through", 7);
        _exit(0);
    }
    int r = open("ff", O_RDONLY);
    ssize_t got = read(r, back, 100);
    say("%.*s", (int)got, back);
    say("%d", ended(child));
    result("end", read(r, back, 100));
    close(r);
    works("seek", lseek(open("ff", O_RDWR), 0, SEEK_SET));
    list(".");
    works("rename", rename("ff", "fg"));
    works("unlink", unlink("fg"));
    works("mknod", mknod("fh", S_IFREG | 0640, 0));
    stat("fh", &s);
    say("%o", s.st_mode);
    works("device", mknod("fi", S_IFCHR | 0600, 0x103));
}

CHECK(directories) {
    struct stat s;
    works("mkdir", mkdir("di", 0755));
    works("exists", mkdir("di", 0755));
    works("missing", mkdir("no/di", 0755));
    works("dot", mkdir(".", 0755));
    works("trailing", mkdir("dj/", 0755));
    works("full", (put("di/x", "x", 1), rmdir("di")));
    works("itself", rmdir("."));
    works("missing", rmdir("no"));
    stat("di", &s);
    say("%o", s.st_mode);
    works("chdir", chdir("di"));
    char text[PATH_MAX];
    say("%s", strrchr(getcwd(text, sizeof text), '/'));
    result("small", getcwd(text, 1) ? 0 : -1);
    show("../di/x");
    works("fchdir", fchdir(open("..", O_RDONLY)));
    works("chdir file", chdir("di/x"));
    int d = open("di", O_RDONLY | O_DIRECTORY);
    works("openat", openat(d, "x", O_RDONLY));
    works("mkdirat", mkdirat(d, "y", 0755));
    works("renameat", renameat(d, "x", d, "y/x"));
    works("fsync", fsync(d));
    list("di");
    list("di/y");
    works("file", open("di/y/x", O_RDONLY | O_DIRECTORY));
    works("opendir", opendir("di/y/x") ? 0 : -1);
    unlinkat(d, "y/x", 0);
    unlinkat(d, "y", AT_REMOVEDIR);
    works("rmdir", rmdir("di"));
    list(".");
}

CHECK(nameless_files) {
    int f = open(".", O_RDWR | O_TMPFILE, 0640);
    works("tmpfile", f);
    if (f < 0)
        return;
    struct stat s;
    result("write", write(f, "nameless", 8));
    fstat(f, &s);
    say("links=%ld %o %ld", (long)s.st_nlink, s.st_mode, (long)s.st_size);
    char name[64];
    snprintf(name, sizeof name, "/proc/self/fd/%d", f);
    works("linkat", linkat(AT_FDCWD, name, AT_FDCWD, "tf", AT_SYMLINK_FOLLOW));
    show("tf");
    fstat(f, &s);
    say("links=%ld", (long)s.st_nlink);
    works("again", linkat(AT_FDCWD, name, AT_FDCWD, "tf", AT_SYMLINK_FOLLOW));
    pwrite(f, "N", 1, 0);
    close(f);
    show("tf");
    f = open(".", O_WRONLY | O_TMPFILE | O_EXCL, 0600);
    works("exclusive", f);
    write(f, "x", 1);
    snprintf(name, sizeof name, "/proc/self/fd/%d", f);
    works("linkat", linkat(AT_FDCWD, name, AT_FDCWD, "tg", AT_SYMLINK_FOLLOW));
    close(f);
    works("read-only", open(".", O_RDONLY | O_TMPFILE, 0600));
    FILE *t = tmpfile();
    say("%d", t != NULL || errno == ENOENT);
    list(".");
}

CHECK(allocation) {
    fill(data, 100000, 5);
    int f = make("fa", data, 100000);
    struct stat s;
    works("grow", fallocate(f, 0, 0, 200000));
    fstat(f, &s);
    say("%ld", (long)s.st_size);
    works("posix", posix_fallocate(f, 0, 10) ? -1 : 0);
    works("punch", fallocate(f, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 5000, 50000));
    works("punch alone", fallocate(f, FALLOC_FL_PUNCH_HOLE, 0, 10));
    show("fa");
    works("punch past", fallocate(f, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 190000, 50000));
    fstat(f, &s);
    say("%ld", (long)s.st_size);
    works("negative", fallocate(f, 0, -1, 10));
    works("nothing", fallocate(f, 0, 0, 0));
    int r = open("fa", O_RDONLY);
    works("read-only", fallocate(r, 0, 0, 10));
    close(r);
    show("fa");
    close(f);
}

CHECK(reserved_space) {
    int f = make("rs", data, 1000);
    works("keep", fallocate(f, FALLOC_FL_KEEP_SIZE, 0, 300000));
    close(f);
    show("rs");
}

CHECK(zeroed_ranges) {
    fill(data, 100000, 5);
    int f = make("fz", data, 100000);
    works("zero", fallocate(f, FALLOC_FL_ZERO_RANGE, 1000, 9000));
    works("zero past", fallocate(f, FALLOC_FL_ZERO_RANGE, 90000, 20000));
    works("zero keep", fallocate(f, FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE, 105000, 20000));
    close(f);
    show("fz");
}

CHECK(data_and_holes) {
    int f = make("sh", "start", 5);
    ftruncate(f, 1 << 20);
    pwrite(f, "end", 3, 1 << 20);
    off_t hole = lseek(f, 0, SEEK_HOLE), end = lseek(f, 0, SEEK_END);
    say("%d", hole > 0 && hole <= end);
    result("data", lseek(f, 0, SEEK_DATA));
    result("last hole", lseek(f, 1 << 20, SEEK_HOLE));
    result("past", lseek(f, 2 << 20, SEEK_DATA));
    result("past", lseek(f, 2 << 20, SEEK_HOLE));
    close(f);
    show("sh");
}

CHECK(times) {
    struct stat s;
    put("ti", "x", 1);
    struct timespec set[2] = {{1600000000, 123456789}, {1500000000, 987654321}};
    works("utimensat", utimensat(AT_FDCWD, "ti", set, 0));
    stat("ti", &s);
    say("%ld.%ld %ld.%ld", s.st_atim.tv_sec, s.st_atim.tv_nsec, s.st_mtim.tv_sec, s.st_mtim.tv_nsec);
    set[0].tv_nsec = UTIME_OMIT;
    set[1].tv_sec = 1400000000;
    works("omit", utimensat(AT_FDCWD, "ti", set, 0));
    stat("ti", &s);
    say("%ld %ld", s.st_atim.tv_sec, s.st_mtim.tv_sec);
    set[1].tv_nsec = UTIME_NOW;
    works("now", utimensat(AT_FDCWD, "ti", set, 0));
    stat("ti", &s);
    say("%d", s.st_mtim.tv_sec > 1700000000);
    set[0] = (struct timespec){-1000, 5};
    set[1] = (struct timespec){5000000000, 0};
    works("far", utimensat(AT_FDCWD, "ti", set, 0));
    stat("ti", &s);
    say("%ld %ld", s.st_atim.tv_sec, s.st_mtim.tv_sec);
    /* Writing changes mtime, reading does not; chmod changes ctime. */
    set[0] = set[1] = (struct timespec){1500000000, 0};
    utimensat(AT_FDCWD, "ti", set, 0);
    int f = open("ti", O_RDWR);
    read(f, back, 1);
    fstat(f, &s);
    say("%d", s.st_mtim.tv_sec == 1500000000);
    write(f, "y", 1);
    fstat(f, &s);
    say("%d", s.st_mtim.tv_sec > 1700000000);
    futimens(f, set);
    fstat(f, &s);
    say("%ld", s.st_mtim.tv_sec);
    close(f);
    stat("ti", &s);
    say("%ld", s.st_mtim.tv_sec);
    f = open("ti", O_RDWR);
    write(f, "z", 1);
    futimens(f, set); /* as tar and cp -p do: the close must not change it again */
    close(f);
    stat("ti", &s);
    say("%ld %d", s.st_mtim.tv_sec, s.st_ctim.tv_sec > 1700000000);
    works("missing", utimensat(AT_FDCWD, "no", NULL, 0));
    mkdir("td", 0755);
    utimensat(AT_FDCWD, "td", set, 0);
    stat("td", &s);
    say("%ld", s.st_mtim.tv_sec);
    put("td/x", "x", 1);
    stat("td", &s);
    say("%d", s.st_mtim.tv_sec > 1700000000);
    f = open("ti", O_RDONLY);
    struct stat before;
    fstat(f, &before);
    truncate("ti", 1); /* same size */
    close(f);
    rename("ti", "tj");
    utimensat(AT_FDCWD, "tj", set, 0);
    rename("tj", "tk");
    stat("tk", &s);
    say("%ld", s.st_mtim.tv_sec);
}

CHECK(attributes) {
    put("xa", "x", 1);
    works("set", setxattr("xa", "user.one", "value", 5, 0));
    works("create", setxattr("xa", "user.one", "v", 1, XATTR_CREATE));
    works("replace", setxattr("xa", "user.two", "v", 1, XATTR_REPLACE));
    works("binary", setxattr("xa", "user.two", "\0\1\2", 3, 0));
    works("empty", setxattr("xa", "user.empty", "", 0, 0));
    result("size", getxattr("xa", "user.one", NULL, 0));
    result("get", getxattr("xa", "user.one", back, 100));
    say("%.5s", back);
    result("short", getxattr("xa", "user.one", back, 2));
    result("missing", getxattr("xa", "user.no", back, 100));
    result("list", listxattr("xa", (char *)back, 1000));
    works("remove", removexattr("xa", "user.one"));
    works("again", removexattr("xa", "user.one"));
    int f = open("xa", O_RDWR);
    works("fset", fsetxattr(f, "user.f", "f", 1, 0));
    result("fget", fgetxattr(f, "user.f", back, 10));
    unlink("xa");
    result("unlinked", fgetxattr(f, "user.f", back, 10));
    close(f);
    mkdir("xd", 0755);
    works("dir", setxattr("xd", "user.d", "d", 1, 0));
    result("dir get", getxattr("xd", "user.d", back, 10));
    works("trusted", setxattr("xd", "trusted.d", "d", 1, 0));
    works("none", setxattr("xd", "nonsense", "d", 1, 0));
}

CHECK(path_handles) {
    put("op", "x", 1);
    int f = open("op", O_PATH);
    works("path", f);
    result("read", read(f, back, 1));
    struct stat s;
    works("fstat", fstat(f, &s));
    char name[64];
    snprintf(name, sizeof name, "/proc/self/fd/%d", f);
    int g = open(name, O_RDWR);
    works("reopen", g);
    result("write", write(g, "y", 1));
    works("ftruncate", ftruncate(f, 0));
    works("fchmod", fchmod(f, 0600));
    works("chmod by name", chmod(name, 0600));
    int d = open(".", O_PATH | O_DIRECTORY);
    works("openat", openat(d, "op", O_RDONLY));
    works("fchdir", fchdir(d));
    works("empty", fstatat(f, "", &s, AT_EMPTY_PATH));
    close(f);
    close(g);
}

CHECK(direct_io) {
    void *aligned;
    posix_memalign(&aligned, 4096, 8192);
    memset(aligned, 'd', 8192);
    int f = open("dio", O_RDWR | O_CREAT | O_DIRECT, 0644);
    works("open", f);
    if (f < 0)
        return;
    result("write", pwrite(f, aligned, 8192, 0));
    int g = open("dio", O_RDWR);
    pwrite(g, "buffered", 8, 4096);
    result("read", pread(f, aligned, 8192, 0));
    say("%.8s", (char *)aligned + 4096);
    memset(aligned, 'e', 4096);
    pwrite(f, aligned, 4096, 4096);
    pread(g, back, 8, 4096);
    say("%.8s", back);
    close(f);
    close(g);
    show("dio");
}

static void *append_lines(void *number) {
    int f = open("mw", O_WRONLY | O_CREAT | O_APPEND, 0644);
    char line[64];
    for (int n = 0; n < 20; n++) {
        int length = snprintf(line, sizeof line, "writer %ld, line %d, and some text\n",
                              (long)number, n);
        write(f, line, length);
    }
    close(f);
    return NULL;
}

CHECK(multiple_writers) {
    pthread_t threads[5];
    for (long n = 0; n < 5; n++)
        pthread_create(&threads[n], NULL, append_lines, (void *)n);
    for (int n = 0; n < 5; n++)
        pthread_join(threads[n], NULL);
    pid_t children[5];
    for (long n = 0; n < 5; n++)
        if (!(children[n] = fork())) {
            append_lines((void *)(n + 5));
            _exit(0);
        }
    for (int n = 0; n < 5; n++)
        ended(children[n]);
    FILE *f = fopen("mw", "r");
    int whole = 0, number, at, seen[10] = {0}, in_order = 1;
    char line[100];
    while (fgets(line, sizeof line, f))
        if (sscanf(line, "writer %d, line %d, and some text", &number, &at) == 2) {
            whole++;
            in_order &= seen[number]++ == at;
        }
    say("%d %d", whole, in_order);
    fclose(f);
}

CHECK(running_programs) {
    works("script", (put("es", "#!/bin/sh\nexit 3\n", 17), chmod("es", 0755)));
    pid_t child = fork();
    if (!child) {
        execl("./es", "es", NULL);
        _exit(errno);
    }
    say("%d", ended(child));
    chmod("es", 0644);
    child = fork();
    if (!child) {
        execl("./es", "es", NULL);
        _exit(errno);
    }
    say("%d", ended(child));
    int from = open("/proc/self/exe", O_RDONLY), to = open("exe", O_RDWR | O_CREAT, 0755);
    off_t at = 0;
    struct stat s;
    fstat(from, &s);
    while (sendfile(to, from, &at, s.st_size) > 0)
        ;
    child = fork();
    if (!child) {
        execl("./exe", "exe", "nothing", NULL);
        _exit(errno);
    }
    say("busy %d", ended(child));
    close(to);
    child = fork();
    if (!child) {
        execl("./exe", "exe", "nothing", NULL);
        _exit(errno);
    }
    say("free %d", ended(child));
    int running[2];
    pipe(running);
    child = fork();
    if (!child) {
        dup2(running[0], 0);
        close(running[1]);
        execl("./exe", "exe", "wait", NULL);
        _exit(errno);
    }
    usleep(100000);
    works("write", open("exe", O_RDWR));
    works("truncate", truncate("exe", 10));
    works("unlink", unlink("exe"));
    close(running[1]);
    say("%d", ended(child));
    put("garbage", "\x7f" "ELFnonsense", 12);
    chmod("garbage", 0755);
    child = fork();
    if (!child) {
        execl("./garbage", "garbage", NULL);
        _exit(errno);
    }
    say("%d", ended(child));
}

CHECK(file_capacity) {
    /* Writing to a full disk is told at the write or at the close, on this one at neither. */
    struct statvfs v;
    statvfs(".", &v);
    say("%d %d", v.f_bsize > 0, v.f_blocks >= v.f_bavail);
    works("sync", (sync(), 0));
    int f = make("fc", "x", 1);
    works("fsync", fsync(f));
    works("fdatasync", fdatasync(f));
    works("syncfs", syncfs(f));
    works("range", sync_file_range(f, 0, 0, SYNC_FILE_RANGE_WRITE));
    works("fadvise", posix_fadvise(f, 0, 0, POSIX_FADV_DONTNEED) ? -1 : 0);
    works("readahead", readahead(f, 0, 4096));
    close(f);
}

CHECK(durable_order) {
    /* close of one descriptor while another still writes; then a third process reads */
    int a = make("do", "0000000000", 10), b = open("do", O_RDWR);
    pwrite(a, "a", 1, 0);
    close(a);
    pwrite(b, "b", 1, 1);
    pid_t child = fork();
    if (!child) {
        char text[11] = "";
        int c = open("do", O_RDWR);
        pread(c, text, 10, 0);
        pwrite(c, "c", 1, 2);
        _exit(strcmp(text, "ab00000000") != 0);
    }
    say("%d", ended(child));
    memset(back, 0, 11);
    pread(b, back, 10, 0);
    say("%s", back);
    close(b);
    show("do");
}

static const struct check CHECKS[] = {
    ENTRY(open_close),        ENTRY(open_flags),
    ENTRY(read_write),        ENTRY(read_write_mmap),
    ENTRY(mmap_processes),    ENTRY(mmap_past_the_end),
    ENTRY(append),            ENTRY(seek_tell),
    ENTRY(delete_files),      ENTRY(stat_sizes),
    ENTRY(modes),             ENTRY(truncate_matrix),
    ENTRY(seek_tell_truncate), ENTRY(copies),
    ENTRY(large_directories), ENTRY(getdents_and_lseek),
    ENTRY(renames),           ENTRY(rename_unlink),
    ENTRY(links),             ENTRY(symlinks),
    ENTRY(record_locks),      ENTRY(whole_file_locks),
    ENTRY(many_descriptors),  ENTRY(long_names),
    ENTRY(fifos),             ENTRY(directories),
    ENTRY(nameless_files),    ENTRY(allocation),
    ENTRY(reserved_space),    ENTRY(deep_paths),
    ENTRY(exchanges),         ENTRY(zeroed_ranges),     ENTRY(data_and_holes),
    ENTRY(times),             ENTRY(attributes),
    ENTRY(path_handles),      ENTRY(direct_io),
    ENTRY(multiple_writers),  ENTRY(running_programs),
    ENTRY(file_capacity),     ENTRY(durable_order),
    {NULL, NULL},
};

static const struct check LARGE[] = {
    ENTRY(large_file),
    ENTRY(very_large_directories),
    {NULL, NULL},
};

int main(int argc, char **argv) {
    if (argc > 1 && !strcmp(argv[1], "nothing"))
        return 17;
    if (argc > 1 && !strcmp(argv[1], "wait"))
        return read(0, back, 1) < 0;
    if (argc > 1 && !strcmp(argv[1], "large"))
        return run_checks(LARGE, 1, argv);
    if (argc > 1 && !strcmp(argv[1], "names"))
        return run_checks(LARGE + 1, 1, argv);
    return run_checks(CHECKS, argc, argv);
}
