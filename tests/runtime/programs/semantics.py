"""What a program may expect of files, as a table of named checks.

Run in a directory of its own: ``python3 semantics.py``. Prints one JSON object, check -> outcome.
The same program runs natively and in the sandbox; the outcomes must be equal.
"""

import errno
import fcntl
import json
import mmap
import os
import random
import signal
import sqlite3
import subprocess
import sys
import threading
import time

CHECKS = {}


def check(function):
    CHECKS[function.__name__] = function
    return function


def put(name, data):
    with open(name, "wb") as f:
        f.write(data)


def get(name):
    with open(name, "rb") as f:
        return f.read()


@check
def random_writes_and_reads():
    generator = random.Random(7)
    model = bytearray(300_000)
    put("rw", bytes(model))
    with open("rw", "r+b", buffering=0) as f:
        for _ in range(200):
            at = generator.randrange(300_000)
            data = generator.randbytes(generator.randrange(1, 9000))
            f.seek(at)
            f.write(data)
            model[at : at + len(data)] = data
            at = generator.randrange(len(model))
            f.seek(at)
            assert f.read(5000) == bytes(model[at : at + 5000])
    return get("rw") == bytes(model)


@check
def truncating_open():
    put("t", b"x" * 10_000)
    size = os.stat("t").st_size
    os.close(os.open("t", os.O_WRONLY | os.O_TRUNC))
    return size, os.stat("t").st_size, get("t")[:4].decode()


@check
def truncate_both_ways():
    put("tt", b"y" * 10_000)
    os.truncate("tt", 5000)
    os.truncate("tt", 20_000)
    data = get("tt")
    return len(data), data[:5000] == b"y" * 5000, data[5000:] == bytes(15_000)


@check
def append_from_two_descriptors():
    a = os.open("ap", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    b = os.open("ap", os.O_WRONLY | os.O_APPEND)
    for n in range(50):
        os.write(a if n % 2 else b, f"{n}\n".encode())
    os.close(a)
    os.close(b)
    return get("ap").decode()


@check
def rename_over():
    put("old", b"old")
    put("new", b"new")
    os.rename("new", "old")
    return get("old").decode(), os.path.exists("new")


@check
def rename_over_an_open_file():
    put("r1", b"first")
    put("r2", b"second")
    with open("r1", "rb") as f:
        os.rename("r2", "r1")
        return f.read().decode(), get("r1").decode()


@check
def unlink_while_open():
    put("u", b"0123456789")
    with open("u", "r+b") as f:
        os.unlink("u")
        f.seek(5)
        f.write(b"abc")
        f.flush()
        f.seek(0)
        return f.read().decode(), os.path.exists("u"), os.fstat(f.fileno()).st_size


@check
def same_name_after_unlink_while_open():
    put("again", b"first")
    with open("again", "r+b") as f:
        os.unlink("again")
        put("again", b"second, longer")
        return f.read().decode(), get("again").decode()


@check
def negative_lookup_then_create():
    before = os.path.exists("neg")
    put("neg", b"n")
    return before, os.path.exists("neg")


@check
def exclusive_create():
    os.close(os.open("ex", os.O_WRONLY | os.O_CREAT | os.O_EXCL))
    try:
        os.open("ex", os.O_WRONLY | os.O_CREAT | os.O_EXCL)
    except OSError as error:
        return errno.errorcode[error.errno]


@check
def missing_and_wrong_kinds():
    put("file", b"")
    os.mkdir("directory")
    seen = []
    for action in (
        lambda: open("nothing"),
        lambda: open("file/below"),
        lambda: open("directory", "w"),
        lambda: os.rmdir("file"),
        lambda: os.mkdir("directory"),
        lambda: os.unlink("nothing"),
        lambda: os.rmdir("nothing"),
        lambda: os.rename("nothing", "else"),
    ):
        try:
            action()
            seen.append("ok")
        except OSError as error:
            seen.append(errno.errorcode[error.errno])
    return seen


@check
def directories():
    os.makedirs("d/e/f")
    put("d/e/g", b"g")
    try:
        os.rmdir("d/e")
        kept = False
    except OSError as error:
        kept = errno.errorcode[error.errno]
    tree = sorted((where, sorted(dirs), sorted(files)) for where, dirs, files in os.walk("d"))
    os.unlink("d/e/g")
    os.removedirs("d/e/f")
    return kept, tree, os.path.exists("d")


@check
def shared_writable_mapping():
    put("m", bytes(100_000))
    with open("m", "r+b") as f:
        with mmap.mmap(f.fileno(), 0) as m:
            m[50_000:50_005] = b"hello"
            m.flush()
        f.seek(50_000)
        seen = f.read(5).decode()
    return seen, get("m")[50_000:50_005].decode()


@check
def fork_shares_offset():
    put("fo", b"abcdefgh")
    f = os.open("fo", os.O_RDONLY)
    pid = os.fork()
    if pid == 0:
        os.read(f, 3)
        os._exit(0)
    os.waitpid(pid, 0)
    rest = os.read(f, 10).decode()
    os.close(f)
    return rest


@check
def two_processes_on_one_file():
    put("two", bytes(8192))
    code = "import os; f=os.open('two',os.O_RDWR); os.pwrite(f,b'child',4096); os.close(f)"
    with open("two", "r+b", buffering=0) as f:
        f.write(b"parent")
        subprocess.run([sys.executable, "-S", "-c", code], check=True)
        f.seek(4096)
        seen = f.read(5).decode()
    data = get("two")
    return seen, data[:6].decode(), data[4096:4101].decode(), len(data)


@check
def interrupted_read_goes_on():
    put("big", os.urandom(1 << 20))
    hits = []
    signal.signal(signal.SIGALRM, lambda *_: hits.append(1))
    signal.setitimer(signal.ITIMER_REAL, 0.001, 0.001)
    total = sum(len(get("big")) for _ in range(20))
    signal.setitimer(signal.ITIMER_REAL, 0)
    return total


@check
def killed_reader():
    put("k", os.urandom(1 << 20))
    pid = os.fork()
    if pid == 0:
        while True:
            get("k")
    time.sleep(0.05)
    os.kill(pid, signal.SIGKILL)
    _, status = os.waitpid(pid, 0)
    return os.WTERMSIG(status), len(get("k"))


@check
def sqlite_rollback_and_wal():
    results = []
    for mode in ("delete", "wal"):
        name = f"db-{mode}"
        base = sqlite3.connect(name)
        results.append(base.execute(f"pragma journal_mode={mode}").fetchone()[0])
        base.execute("create table t(x)")
        base.executemany("insert into t values(?)", [(n,) for n in range(1000)])
        base.commit()
        base.execute("delete from t where x % 2")
        base.rollback()
        results.append(base.execute("select count(*), sum(x) from t").fetchone())
        base.close()
        again = sqlite3.connect(name)
        results.append(again.execute("pragma integrity_check").fetchone()[0])
        again.close()
    return results


@check
def locks():
    put("l", b"")
    f = os.open("l", os.O_RDWR)
    fcntl.flock(f, fcntl.LOCK_EX)
    fcntl.lockf(f, fcntl.LOCK_EX)
    pid = os.fork()
    if pid == 0:
        g = os.open("l", os.O_RDWR)
        busy = 0
        for take in (fcntl.flock, fcntl.lockf):
            try:
                take(g, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                busy += 1
        os._exit(busy)
    _, status = os.waitpid(pid, 0)
    os.close(f)
    return os.waitstatus_to_exitcode(status)


@check
def preallocation_and_copying():
    put("src", os.urandom(200_000))
    with open("src", "rb") as a, open("dst", "w+b") as b:
        os.posix_fallocate(b.fileno(), 0, 250_000)
        sent = 0
        while sent < 200_000:
            sent += os.sendfile(b.fileno(), a.fileno(), sent, 200_000 - sent)
        sized = os.fstat(b.fileno()).st_size
        done = os.copy_file_range(a.fileno(), b.fileno(), 1000, 0, 0)
    data = get("dst")
    return sized, done > 0, data[1000:200_000] == get("src")[1000:], data[200_000:] == bytes(50_000)


@check
def hard_links():
    put("h1", b"one file")
    os.link("h1", "h2")
    with open("h2", "r+b") as f:
        f.write(b"ONE")
    seen = [
        get("h1").decode(),
        os.stat("h1").st_nlink,
        os.stat("h1").st_ino == os.stat("h2").st_ino,
    ]
    os.unlink("h1")
    seen += [get("h2").decode(), os.stat("h2").st_nlink, os.path.exists("h1")]
    os.rename("h2", "h3")
    return [*seen, get("h3").decode()]


@check
def symbolic_links():
    os.makedirs("s/t")
    put("s/target", b"reached")
    os.symlink("target", "s/near")
    os.symlink("../target", "s/t/up")
    os.symlink("nowhere", "s/dangling")
    seen = [get("s/near").decode(), get("s/t/up").decode(), os.readlink("s/t/up")]
    seen += [os.path.islink("s/dangling"), os.path.exists("s/dangling")]
    os.rename("s/target", "s/moved")
    seen.append(os.path.exists("s/near"))
    os.unlink("s/near")
    return [*seen, sorted(os.listdir("s"))]


@check
def threads():
    put("th", bytes(64 * 4096))
    f = os.open("th", os.O_RDWR)

    def work(n):
        for turn in range(20):
            os.pwrite(f, bytes([n]) * 4096, (n * 16 + turn % 16) * 4096)

    workers = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    os.close(f)
    data = get("th")
    return [data[n * 65536 : (n + 1) * 65536] == bytes([n]) * 65536 for n in range(4)]


@check
def times_and_modes():
    put("tm", b"x")
    os.utime("tm", ns=(1_600_000_000_123_456_789, 1_500_000_000_987_654_321))
    os.chmod("tm", 0o640)
    s = os.stat("tm")
    return s.st_mtime_ns, oct(s.st_mode), s.st_size


@check
def new_files_have_the_mode_asked_for():
    os.umask(0o002)
    os.close(os.open("group", os.O_CREAT | os.O_WRONLY, 0o664))
    os.mkdir("shared", 0o775)
    os.umask(0o022)
    return [oct(os.stat(name).st_mode) for name in ("group", "shared")]


@check
def long_names():
    name = "n" * 255
    put(name, b"long")
    try:
        put("n" * 256, b"")
        too_long = "ok"
    except OSError as error:
        too_long = errno.errorcode[error.errno]
    return get(name).decode(), too_long


@check
def many_entries():
    os.mkdir("many")
    for n in range(2000):
        os.close(os.open(f"many/{n:05}", os.O_CREAT | os.O_WRONLY))
    names = os.listdir("many")
    for name in names:
        os.unlink(f"many/{name}")
    os.rmdir("many")
    return len(names), len(set(names))


@check
def holes_and_large_offsets():
    with open("sparse", "wb") as f:
        f.seek(5_000_000)
        f.write(b"end")
    data = get("sparse")
    return len(data), data[-3:].decode(), data[:5_000_000] == bytes(5_000_000)


@check
def descriptors_stay_coherent():
    put("co", b"a" * 5000)
    r = os.open("co", os.O_RDONLY)
    w = os.open("co", os.O_RDWR)
    seen = [os.pread(r, 3, 0).decode()]
    os.pwrite(w, b"bbb", 0)
    seen.append(os.pread(r, 3, 0).decode())
    os.ftruncate(w, 1)
    seen.append(os.pread(r, 10, 0).decode())
    os.close(r)
    os.close(w)
    return seen


def main():
    results = {}
    for name, function in CHECKS.items():
        try:
            results[name] = function()
        except Exception as error:
            results[name] = type(error).__name__
    print(json.dumps(results))


main()
