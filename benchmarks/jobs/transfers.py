"""Time reads and writes, print seconds as JSON: ``transfers.py TRUSTED ENCRYPTED SCRATCH``.

"first" is the first read of a file in this process and its mount; the machine's own cache is warm.
"""

import json
import os
import random
import sys
import time

BLOCK = 1 << 20
PAGE = 4096
READS = 3000


def seconds(work, *arguments):
    start = time.perf_counter()
    work(*arguments)
    return time.perf_counter() - start


def read_through(path):
    buffer = bytearray(BLOCK)
    with open(path, "rb", buffering=0) as stream:
        while stream.readinto(buffer):
            pass


def read_pages(path, places):
    descriptor = os.open(path, os.O_RDONLY)
    for place in places:
        os.pread(descriptor, PAGE, place)
    os.close(descriptor)


def write_through(path, size):
    block = os.urandom(BLOCK)
    with open(path, "wb", buffering=0) as stream:
        for _ in range(size // BLOCK):
            stream.write(block)


def write_pages(path, places):
    page = os.urandom(PAGE)
    descriptor = os.open(path, os.O_RDWR)
    for place in places:
        os.pwrite(descriptor, page, place)
    os.close(descriptor)


def main():
    trusted, encrypted, scratch = sys.argv[1:]
    dice = random.Random(1)
    found = {}
    for kind, path in (("trusted", trusted), ("encrypted", encrypted)):
        size = os.path.getsize(path)
        places = [dice.randrange(size // PAGE) * PAGE for _ in range(READS)]
        other = f"{path}-2"
        found[f"{kind}: read through, first"] = seconds(read_through, path)
        found[f"{kind}: read through, again"] = seconds(read_through, path)
        found[f"{kind}: random 4 KiB, first"] = seconds(read_pages, other, places)
        found[f"{kind}: random 4 KiB, again"] = seconds(read_pages, other, places)
    found["encrypted: write through"] = seconds(write_through, scratch, size)
    found["encrypted: write over random 4 KiB"] = seconds(write_pages, scratch, places)
    os.unlink(scratch)
    print(json.dumps(found))


main()
