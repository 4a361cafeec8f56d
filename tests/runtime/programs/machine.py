"""Looks at what the machine shows of itself; prints it."""

import json
import os
import sys


def walk(top):
    found = []
    for directory, directories, files in os.walk(top):
        found += [os.path.join(directory, name) for name in directories + files]
        if len(found) > 100_000:
            return ["endless"]
    return found


def kind(path):
    try:
        if os.path.isdir(path):
            return os.listdir(path)
        with open(path, "rb") as file:
            return len(file.read()) > 0
    except OSError as error:
        return type(error).__name__


def sched():
    return [os.cpu_count(), len(os.sched_getaffinity(0)), os.sysconf("SC_NPROCESSORS_CONF")]


top = {name: kind(f"/proc/{name}") for name in os.listdir("/proc") if not name.isdigit()}
json.dump(
    {
        "top": {n: v for n, v in top.items() if v not in ([], "FileNotFoundError")},
        "processes": sorted(int(name) for name in os.listdir("/proc") if name.isdigit()),
        "own": [os.getpid(), os.getppid()],
        "sys": walk("/proc/sys"),
        "sysfs": walk("/sys"),
        "max": int(open("/proc/sys/kernel/pid_max").read()),
        "maps": kind("/proc/self/maps"),
        "exe": os.readlink("/proc/self/exe"),
        "thread": kind("/proc/thread-self/status"),
        "init": [kind("/proc/1/cmdline"), kind("/proc/1/maps"), kind("/proc/1/root/etc")],
        "processors": sched(),
        "online": open("/sys/devices/system/cpu/online").read(),
        "sizes": open("/sys/devices/system/cpu/cpu0/cache/index0/size").read()
        if os.path.exists("/sys/devices/system/cpu/cpu0/cache/index0")
        else "",
        "memory": os.sysconf("SC_PHYS_PAGES") > 0,
        "root": sorted(os.listdir("/")),
    },
    sys.stdout,
)
