"""Every way to read a file, as JSON: ``large_file.py FILE SCRATCH``.

It is read twice; the rest only if a line comes from standard input, and then another one ends it.
"""

import errno
import fcntl
import hashlib
import json
import mmap
import os
import sys

path, scratch = sys.argv[1:]


def digest(data):
    return hashlib.sha256(data).hexdigest()


def outcome(work):
    try:
        return work()
    except OSError as error:
        return errno.errorcode[error.errno]


def whole():
    with open(path, "rb") as stream:
        return digest(stream.read())


def mapped(access):
    with open(path, "rb") as stream, mmap.mmap(stream.fileno(), 0, access=access) as memory:
        if access == mmap.ACCESS_COPY:
            memory[5] = memory[5] ^ 1
            memory[5] = memory[5] ^ 1
        return digest(memory)


def copied(copy):
    source = os.open(path, os.O_RDONLY)
    target = os.open(scratch, os.O_RDWR | os.O_CREAT | os.O_TRUNC)
    size = os.fstat(source).st_size
    done = 0
    while done < size:
        done += copy(source, target, done, size - done)
    return digest(os.pread(target, size, 0))


def pieces():
    descriptor = os.open(path, os.O_RDONLY)
    size = os.fstat(descriptor).st_size
    places = (0, 1, 4095, 16384, size // 2 + 3, size - 10, size, size + 100)
    return [digest(os.pread(descriptor, 70_000, place)) for place in places]


def holes():
    descriptor = os.open(path, os.O_RDONLY)
    return [os.lseek(descriptor, 0, how) for how in (os.SEEK_DATA, os.SEEK_HOLE, os.SEEK_END)]


def past_the_cache():
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECT)
    page = mmap.mmap(-1, 8192)
    return os.preadv(descriptor, [page], 4096), digest(page)


def shown():
    found = os.stat(path)
    with open(path, "rb") as stream:
        assert os.fstat(stream.fileno()) == found
    return found.st_size, found.st_mode, found.st_mtime_ns, found.st_nlink


def locked():
    with open(path, "rb") as one, open(path, "rb") as other:
        fcntl.flock(one, fcntl.LOCK_EX)
        return outcome(lambda: fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB))


def in_a_child():
    with open(path, "rb") as stream:
        stream.seek(100)
        pid = os.fork()
        if pid == 0:
            os._exit(stream.read(1)[0])
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), stream.read(1)[0]


twice = [whole(), whole()]
if sys.stdin.readline():
    print(
        json.dumps(
            {
                "twice": twice,
                "mapped": mapped(mmap.ACCESS_READ),
                "mapped privately": mapped(mmap.ACCESS_COPY),
                "sent": copied(lambda a, b, at, size: os.sendfile(b, a, at, size)),
                "copied": copied(lambda a, b, at, size: os.copy_file_range(a, b, size)),
                "pieces": pieces(),
                "holes": outcome(holes),
                "past the cache": outcome(past_the_cache),
                "shown": shown(),
                "locked": locked(),
                "in a child": in_a_child(),
            }
        ),
        flush=True,
    )
    sys.stdin.readline()
