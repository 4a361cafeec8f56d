"""Reads a trusted file that the host changes all the time; prints what it was given."""

import json
import mmap
import os
import random
import signal
import time

PATH, SIZE, PAGE = "/data/big", 4 << 20, 4096
got = {"signed": 0, "changed": 0, "refused": 0, "SIGBUS": 0, "other": 0}


def judge(data):
    got["signed" if data == b"A" * len(data) else "changed"] += 1


def read_some():
    with open(PATH, "rb", 0) as file:
        for _ in range(20):
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            offset = random.randrange(SIZE - 300_000)
            data = os.pread(file.fileno(), random.choice((1, PAGE, 300_000)), offset)
            judge(data or b"cut")


def map_some():
    """In a child: a page that cannot be served ends it with SIGBUS."""
    pid = os.fork()
    if pid == 0:
        code = 2
        try:
            with open(PATH, "rb") as file, mmap.mmap(file.fileno(), SIZE, prot=1) as pages:
                code = 0
                for _ in range(100):
                    page = random.randrange(SIZE // PAGE) * PAGE
                    if pages[page : page + PAGE] != b"A" * PAGE:
                        code = 1
        finally:
            os._exit(code)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    kinds = {0: "signed", 1: "changed", 2: "refused", -signal.SIGBUS: "SIGBUS"}
    got[kinds.get(code, "other")] += 1


open("/out/ready", "w").close()
until = time.monotonic() + 4
while time.monotonic() < until:
    for attempt in (read_some, map_some):
        try:
            attempt()
        except OSError:
            got["refused"] += 1
open("/out/done", "w").close()
print(json.dumps(got))
