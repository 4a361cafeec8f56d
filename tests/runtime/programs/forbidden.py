"""Tries what the sandbox must not permit; prints what happened."""

import ctypes
import errno
import fcntl
import json
import mmap
import os
import subprocess
import threading

libc = ctypes.CDLL(None, use_errno=True)
CALLS = {
    "mount": (165, 0, 0, 0, 0, 0),
    "unshare": (272, 0),
    "setns": (308, 0, 0),
    "ptrace": (101, 0, 0, 0, 0),
    "bpf": (321, 0, 0, 0),
    "io_uring_setup": (425, 1, 0),
    "clone3": (435, 0, 0),
    "keyctl": (250, 0, 0, 0, 0, 0),
    "clone(CLONE_NEWUSER)": (56, 0x10000000 | 17, 0, 0, 0, 0),
}
outcomes = {"absent": [], "refused with EPERM": [], "permitted": [], "other": []}


def note(name, number):
    kind = {errno.ENOSYS: "absent", errno.EPERM: "refused with EPERM"}.get(number, "other")
    outcomes[kind].append(name)


for name, arguments in CALLS.items():
    ctypes.set_errno(0)
    if libc.syscall(*(ctypes.c_long(a) for a in arguments)) == 0 and "clone" in name:
        os._exit(0)
    note(name, ctypes.get_errno())
try:
    fcntl.ioctl(0, 0x5412, b"x")
except OSError as error:
    note("ioctl(TIOCSTI)", error.errno)

pid = os.fork()
if pid == 0:
    os._exit(0)
os.waitpid(pid, 0)
outcomes["permitted"].append("fork")
threading.Thread(target=lambda: outcomes["permitted"].append("thread")).start()
subprocess.run(["/bin/true"], check=True)
outcomes["permitted"].append("exec")
mmap.mmap(-1, 4096).close()
outcomes["permitted"].append("mmap")
if not outcomes["other"]:
    del outcomes["other"]
print(json.dumps(outcomes))
