"""Reaches limits; prints what happened."""

import json
import mmap
import os
import resource
import subprocess
import sys
import threading


def large_allocation():
    try:
        bytearray(1 << 30)
    except MemoryError:
        return "MemoryError"
    return "allocated"


def many_small_allocations():
    kept = []
    try:
        while True:
            kept.append(mmap.mmap(-1, 1 << 20))
    except OSError as error:
        count = len(kept)
        kept.clear()
        return [count, error.errno]


def threads():
    wait, started = threading.Event(), []
    try:
        for _ in range(64):
            thread = threading.Thread(target=wait.wait)
            thread.start()
            started.append(thread)
        outcome = "all"
    except RuntimeError:
        outcome = "RuntimeError"
    wait.set()
    for thread in started:
        thread.join()
    return [len(started) + 1, outcome]


def subprocesses():
    try:
        return subprocess.run([sys.executable, "-c", "1"], check=False).returncode
    except OSError as error:
        return error.errno


def fork():
    try:
        pid = os.fork()
    except OSError as error:
        return error.errno
    if pid == 0:
        os._exit(0)
    return os.waitpid(pid, 0)[1]


def descriptors():
    opened = []
    try:
        while True:
            opened.append(os.open("/dev/null", os.O_RDONLY))
    except OSError as error:
        for one in opened:
            os.close(one)
        return [opened[-1] + 1, error.errno]


def limits():
    names = ("STACK", "NOFILE", "AS", "CORE")
    return {name: resource.getrlimit(getattr(resource, f"RLIMIT_{name}")) for name in names}


print(json.dumps({name: globals()[name]() for name in sys.argv[1:]}), flush=True)
if "fail" in os.environ:
    sys.exit(3)
