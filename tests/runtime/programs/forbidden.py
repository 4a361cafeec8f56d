"""Tries what the sandbox must not permit; prints what happened."""

import ctypes
import errno
import fcntl
import json
import mmap
import os
import socket
import subprocess
import sys
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
FAMILIES = {"vsock": 40, "packet": 17, "alg": 38, "inet": 2, "inet6": 10, "unix": 1}
outcomes = {"absent": [], "refused with EPERM": [], "permitted": [], "other": []}
outcomes["no such family"] = []


def note(name, number):
    kinds = {
        0: "permitted",
        errno.ENOSYS: "absent",
        errno.EPERM: "refused with EPERM",
        errno.EAFNOSUPPORT: "no such family",
    }
    kind = kinds.get(number, "other")
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

for name, family in FAMILIES.items():
    try:
        socket.socket(family, 3 if name == "packet" else 5 if name == "alg" else 1, 0).close()
        note(name, 0)
    except OSError as error:
        note(name, error.errno)
for protocol in (0, 12):  # NETLINK_ROUTE, NETLINK_NETFILTER
    try:
        socket.socket(16, socket.SOCK_RAW, protocol).close()
        note(f"netlink {protocol}", 0)
    except OSError as error:
        note(f"netlink {protocol}", error.errno)
for name, persona in (("personality query", 0xFFFFFFFF), ("READ_IMPLIES_EXEC", 0x0400000)):
    ctypes.set_errno(0)
    libc.syscall(135, ctypes.c_long(persona))
    note(name, ctypes.get_errno())
if socket.if_nameindex():
    outcomes["permitted"].append("interfaces")
if len(sys.argv) > 1:
    with socket.socket(socket.AF_UNIX) as client:
        try:
            client.connect(f"\0{sys.argv[1]}")
            note("the host's abstract socket", 0)
        except OSError as error:
            note("the host's abstract socket", error.errno)
own = socket.socket(socket.AF_UNIX)
own.bind("\0of-the-program")
own.listen(1)
with socket.socket(socket.AF_UNIX) as client:
    client.connect("\0of-the-program")
    outcomes["permitted"].append("own abstract socket")

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
