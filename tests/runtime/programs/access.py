"""Does every operation to every kind of file; prints for each "ok" or the name of the error."""

import errno
import json
import os
import subprocess

KINDS = {
    "trusted": "/t/trusted",
    "changed": "/t/changed",
    "another size": "/t/another-size",
    "missing trusted": "/t/missing",
    "unlisted": "/t/unlisted",
    "absent": "/t/absent",
    "allowed": "/a/file",
    "allowed by name": "/t/one",
    "absent allowed": "/a/absent",
    "both": "/a/both",
    "encrypted": "/e/file",
    "plain in encrypted": "/e/plain",
    "absent encrypted": "/e/absent",
}
BY_PROGRAM = ("allowed", "allowed by name", "both", "encrypted")


def read(path):
    with open(path, "rb", 0) as file:
        file.read()


def opened(flags):
    return lambda path: os.close(os.open(path, flags, 0o644))


def source():
    with open("/a/source", "w") as file:
        file.write("source")
    return "/a/source"


def execute(path):
    with open(path, "rb", 0):  # what cannot be read is not a program either
        subprocess.run([path], check=False)


OPERATIONS = {
    "stat": os.stat,
    "access": lambda path: os.access(path, os.R_OK) or os.stat(path),
    "read": read,
    "open w": opened(os.O_WRONLY),
    "open rw": opened(os.O_RDWR),
    "open trunc": opened(os.O_WRONLY | os.O_TRUNC),
    "open append": opened(os.O_WRONLY | os.O_APPEND),
    "open creat": opened(os.O_RDONLY | os.O_CREAT),
    "create": opened(os.O_WRONLY | os.O_CREAT | os.O_EXCL),
    "truncate": lambda path: os.truncate(path, 1),
    "chmod": lambda path: os.chmod(path, 0o644),
    "utime": lambda path: os.utime(path, (1, 1)),
    "setxattr": lambda path: os.setxattr(path, "user.x", b"x"),
    "unlink": os.unlink,
    "rename away": lambda path: os.rename(path, "/a/moved"),
    "rename over": lambda path: os.rename(source(), path),
    "link away": lambda path: os.link(path, "/a/linked"),
    "link to": lambda path: os.link(source(), path),
    "symlink to": lambda path: os.symlink("/a/source", path),
    "mkdir": os.mkdir,
    "mkfifo": os.mkfifo,
}
DIRECTORIES = {"allowed": "/a/d", "unlisted": "/t/d", "encrypted": "/e/d", "mount": "/a"}
ON_DIRECTORIES = {
    "list": os.listdir,
    "open": opened(os.O_RDONLY | os.O_DIRECTORY),
    "open w": opened(os.O_WRONLY),
    "rmdir": os.rmdir,
    "unlink": os.unlink,
    "rename": lambda path: os.rename(path, path + "-moved"),
    "mkdir below": lambda path: os.mkdir(path + "/new"),
}


def attempt(operation, path):
    try:
        operation(path)
    except OSError as error:
        return errno.errorcode[error.errno]
    return "ok"


def prepare(kind, path):
    for leftover in ("/a/moved", "/a/linked", path):
        if leftover != path or kind not in ("trusted", "changed", "another size", "unlisted"):
            for remove in (os.unlink, os.rmdir):
                try:
                    remove(leftover)
                except OSError:
                    pass
    if kind in BY_PROGRAM:
        with open(path, "w") as file:
            file.write("content")


outcomes = {}
for kind, path in KINDS.items():
    for name, operation in OPERATIONS.items():
        if kind == "plain in encrypted":
            if name in ("unlink", "rename over"):
                continue  # it is there only once
        else:
            prepare(kind, path)
        outcomes[f"{name}: {kind}"] = attempt(operation, path)
outcomes["unlink: plain in encrypted"] = attempt(os.unlink, "/e/plain")
for kind, path in DIRECTORIES.items():
    for name, operation in ON_DIRECTORIES.items():
        if kind in ("allowed", "encrypted"):
            for made in (path, path + "-moved"):
                for below in ("/file", "/new"):
                    attempt(os.unlink, made + below)
                    attempt(os.rmdir, made + below)
                attempt(os.rmdir, made)
            os.mkdir(path)
            open(path + "/file", "w").close()
        outcomes[f"{name}: {kind} directory"] = attempt(operation, path)
print(json.dumps(outcomes))
