"""Does what no program should, to every mount named; prints what it lived through."""

import ctypes
import fcntl
import json
import os
import random
import signal
import sys

libc = ctypes.CDLL(None, use_errno=True)
lived = []


def attempt(action):
    try:
        return action()
    except (OSError, ValueError, OverflowError):
        return None


def deep(top):
    """Directories until the kernel's path limit, then the top one gets another name."""
    os.mkdir(f"{top}/deep")
    start = os.getcwd()
    os.chdir(f"{top}/deep")
    depth = 0
    while depth < 1500 and attempt(lambda: os.mkdir("d") or os.chdir("d") or True):
        depth += 1
    attempt(lambda: open("file", "w").close())  # an encrypted file's path has 771 bytes at most
    os.chdir(start)
    os.rename(f"{top}/deep", f"{top}/renamed")
    os.stat(f"{top}/renamed" + "/d" * depth)
    return depth


def names(top):
    for name in (b"\xff\xfe\n\x01", b"n" * 255, b" ", b"-rf", "\u202e.txt".encode()):
        path = os.path.join(os.fsencode(top), name)
        with open(path, "wb") as file:
            file.write(b"x")
        os.rename(path, path[:-1] + b"~" if len(name) > 1 else path + b"~")
    for name in (b"n" * 256, b"x" * 5000):
        assert attempt(lambda name=name: os.mkdir(os.path.join(os.fsencode(top), name))) is None
    return len(os.listdir(top))


def odd_requests(top):
    path = f"{top}/odd"
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT)
    for offset in (0, 1 << 50, 1 << 62):  # encrypted files have no holes
        attempt(lambda offset=offset: os.pwrite(descriptor, b"x", offset))
        attempt(lambda offset=offset: os.pread(descriptor, 1 << 16, offset))
        attempt(lambda offset=offset: os.lseek(descriptor, offset, os.SEEK_HOLE))
    os.ftruncate(descriptor, 10)
    attempt(lambda: os.posix_fallocate(descriptor, 0, 1 << 62))
    for request in (0, 0x5401, 0x541B, 0xC0045878, 0x40086602, 0xFFFFFFFF):
        attempt(lambda request=request: fcntl.ioctl(descriptor, request, b"\0" * 64))
    for name in ("user." + "x" * 250, "security.x", "trusted.x", "system.posix_acl_access", "x"):
        for value in (b"", b"x" * 70_000):
            attempt(lambda name=name, value=value: os.setxattr(path, name, value))
    random.seed(1)
    for _ in range(300):  # calls on files, with numbers that mean nothing
        number = random.choice((8, 17, 18, 72, 75, 77, 138, 217, 221, 275, 285, 306, 316, 326))
        arguments = [random.choice((0, 1, -1, 1 << 50, 1 << 62)) for _ in range(5)]
        libc.syscall(number, descriptor, *(ctypes.c_long(value) for value in arguments))
    os.close(descriptor)
    return True


for top in sys.argv[1:]:
    lived += [deep(top) > 100, names(top) > 0, odd_requests(top)]
handles = [attempt(lambda: os.open("/dev/null", os.O_RDONLY)) for _ in range(2000)]
for handle in handles:
    if handle is not None:
        os.close(handle)
children = []
for _ in range(50):
    pid = os.fork()
    if pid == 0:
        signal.pause()
    children.append(pid)
attempt(lambda: os.kill(1, signal.SIGKILL))
os.kill(-1, signal.SIGKILL)  # all but process 1 and this one
lived += [os.waitpid(pid, 0)[1] == signal.SIGKILL for pid in children]
with open(f"{sys.argv[1]}/after", "w") as file:
    file.write("still there")
lived.append(open(f"{sys.argv[1]}/after").read() == "still there")
print(json.dumps(lived))
