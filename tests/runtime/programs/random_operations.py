"""Random sequences of file operations: ``random_operations.py SEED COUNT`` prints each outcome.

The same seed gives the same operations, so a run in the sandbox must print what a native run does.
Links, exchanges and holes are left to other programs, so that encrypted mounts can take part.
"""

import errno
import mmap
import os
import random
import sys
import zlib

NAMES = ["a", "b", "c", "d/a", "d/b", "d/e/a", "f/a"]
DIRECTORIES = ["d", "d/e", "f", "g"]
FLAGS = [
    os.O_RDONLY,
    os.O_RDWR,
    os.O_WRONLY,
    os.O_RDWR | os.O_CREAT,
    os.O_RDWR | os.O_CREAT | os.O_EXCL,
    os.O_WRONLY | os.O_CREAT | os.O_TRUNC,
    os.O_RDWR | os.O_CREAT | os.O_APPEND,
]
SIZES = [0, 1, 100, 3071, 3072, 3073, 4096, 7168, 7169, 10_000, 70_000]


class Operations:
    def __init__(self, seed):
        self.random = random.Random(seed)
        self.files = []
        self.maps = []

    def name(self):
        return self.random.choice(NAMES)

    def size(self):
        if self.random.random() < 0.5:
            return self.random.choice(SIZES)
        return self.random.randrange(120_000)

    def data(self):
        return self.random.randbytes(self.random.choice(SIZES))

    def file(self):
        if not self.files:
            raise OSError(errno.EBADF, "nothing is open")
        return self.random.choice(self.files)

    def open(self):
        f = os.open(self.name(), self.random.choice(FLAGS), 0o644)
        self.files.append(f)
        if len(self.files) > 8:
            os.close(self.files.pop(0))
        return "opened"

    def close(self):
        if self.files:
            os.close(self.files.pop(self.random.randrange(len(self.files))))

    def write(self):
        return os.write(self.file(), self.data())

    def pwrite(self):
        return os.pwrite(self.file(), self.data(), self.size())

    def read(self):
        return zlib.crc32(os.read(self.file(), self.size()))

    def pread(self):
        return zlib.crc32(os.pread(self.file(), self.size(), self.size()))

    def seek(self):
        whence = self.random.choice([os.SEEK_SET, os.SEEK_CUR, os.SEEK_END])
        return os.lseek(self.file(), self.size() - 50_000, whence)

    def truncate(self):
        return os.truncate(self.name(), self.size())

    def ftruncate(self):
        return os.ftruncate(self.file(), self.size())

    def fsync(self):
        return os.fsync(self.file())

    def stat(self):
        s = os.stat(self.name())
        return oct(s.st_mode), s.st_size, s.st_nlink

    def fstat(self):
        s = os.fstat(self.file())
        return s.st_size, s.st_nlink

    def chmod(self):
        return os.chmod(self.name(), self.random.choice([0o600, 0o644, 0o755]))

    def utime(self):
        name = self.name()
        os.utime(name, (10**9, self.random.randrange(10**9)))
        return os.stat(name).st_mtime

    def unlink(self):
        return os.unlink(self.name())

    def rename(self):
        return os.rename(self.name(), self.name())

    def rename_directory(self):
        return os.rename(self.random.choice(DIRECTORIES), self.random.choice(DIRECTORIES))

    def mkdir(self):
        return os.mkdir(self.random.choice(DIRECTORIES))

    def rmdir(self):
        return os.rmdir(self.random.choice(DIRECTORIES))

    def list(self):
        return sorted(os.listdir(self.random.choice([".", *DIRECTORIES])))

    def map(self):
        f = self.file()
        size = os.fstat(f).st_size
        if size:
            self.maps.append(mmap.mmap(f, size))
        if len(self.maps) > 3:
            self.maps.pop(0).close()
        return size

    def write_map(self):
        # Only as far as the file reaches now; beyond that a process is killed.
        if self.maps and self.random.random() < 0.8:
            m = self.maps[-1]
            reaches = min(len(m), m.size())
            if reaches > 10:
                at = self.random.randrange(reaches - 10)
                m[at : at + 10] = self.random.randbytes(10)
                return zlib.crc32(m[at : at + 10])

    def read_map(self):
        if self.maps:
            m = self.random.choice(self.maps)
            return zlib.crc32(m[: min(len(m), m.size())])

    def copy(self):
        return os.copy_file_range(self.file(), self.file(), self.size(), self.size(), self.size())

    def send(self):
        source, target = self.file(), self.file()
        if os.path.sameopenfile(source, target):
            return "overlapping pieces are copied in any order"
        return os.sendfile(target, source, self.size(), self.size())

    def allocate(self):
        return os.posix_fallocate(self.file(), self.size(), 1 + self.size())

    def nameless(self):
        directory = os.open(self.random.choice([".", *DIRECTORIES]), os.O_RDONLY)
        try:
            f = os.open(".", os.O_RDWR | os.O_TMPFILE, 0o640, dir_fd=directory)
        finally:
            os.close(directory)
        self.files.append(f)
        os.write(f, self.data())
        here = os.open(".", os.O_RDONLY)
        try:
            os.link(f"/proc/self/fd/{f}", self.name(), src_dir_fd=here, follow_symlinks=True)
        finally:
            os.close(here)
        os.write(f, self.data())
        return os.fstat(f).st_nlink

    def in_a_child(self):
        pid = os.fork()
        if pid == 0:
            try:
                f = os.open(self.name(), os.O_RDWR | os.O_APPEND)
                os.write(f, self.data())
                os._exit(0)
            except OSError as error:
                os._exit(error.errno)
        _, status = os.waitpid(pid, 0)
        return os.waitstatus_to_exitcode(status)

    def run(self, count):
        operations = [
            value
            for name, value in sorted(vars(Operations).items())
            if not name.startswith("_") and name not in ("run", "name", "size", "data", "file")
        ]
        weights = [
            4 if o.__name__ in ("open", "write", "pwrite", "mkdir") else 1 for o in operations
        ]
        for number in range(count):
            (operation,) = self.random.choices(operations, weights)
            try:
                outcome = operation(self)
            except OSError as error:
                outcome = errno.errorcode[error.errno]
            print(number, operation.__name__, outcome)
        for m in self.maps:
            m.close()
        for f in self.files:
            os.close(f)
        for where, directories, files in sorted(os.walk(".")):
            for name in sorted(files):
                with open(os.path.join(where, name), "rb") as f:
                    print(where, name, zlib.crc32(f.read()))
            print(where, sorted(directories))


Operations(int(sys.argv[1])).run(int(sys.argv[2]))
