"""What a program learns of the machine it runs on: no more than it needs."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

from applications import PYTHON, App


def test_proc_and_sys_show_what_programs_need(app: App) -> None:
    done = app.direct([PYTHON, "/programs/machine.py"])
    got = json.loads(done.stdout)
    assert set(got["top"]) == {
        *("cpuinfo", "meminfo", "stat", "sys"),
        *("self", "thread-self", "mounts", "net"),  # links to the caller's own directory
    }
    assert got["processes"] == [2]
    assert got["own"] == [2, 1]
    assert {os.path.relpath(path, "/proc/sys") for path in got["sys"]} <= {
        *(
            "fs",
            "fs/lease-break-time",
            "fs/pipe-max-size",
            "kernel",
            "kernel/ngroups_max",
            "kernel/pid_max",
        ),
        *("kernel/random", "kernel/random/uuid", "net", "net/core", "net/core/somaxconn"),
        *("vm", "vm/overcommit_memory"),
    }
    assert got["max"] == int(Path("/proc/sys/kernel/pid_max").read_text())
    assert got["maps"] is True
    assert got["exe"] == PYTHON
    assert got["thread"] is True
    assert got["init"] == ["PermissionError"] * 2 + [False] or all(
        outcome in ("PermissionError", "FileNotFoundError") for outcome in got["init"]
    )
    assert got["processors"][0] == os.cpu_count()
    assert got["processors"][1] == len(os.sched_getaffinity(0))
    assert got["online"] == Path("/sys/devices/system/cpu/online").read_text()
    assert got["memory"]
    assert ".cloister" not in got["root"]
    names = {re.sub("[0-9]+", "N", path) for path in got["sysfs"]}
    assert "/sys/devices/system/cpu/cpuN/topology/core_id" in names
    assert not {name for name in names if re.search("subsystem|uevent|firmware|vulnerab", name)}
    assert len(names) < 100


def test_nobody_can_change_the_machine(app: App) -> None:
    script = """
for f in /proc/sys/kernel/pid_max /proc/sysrq-trigger /proc/sys/kernel/core_pattern \
    /sys/devices/system/cpu/cpu1/online; do
  echo 1 > $f && echo "changed $f"
done
cat /proc/kallsyms /proc/keys /proc/cmdline /proc/modules /proc/bus/* /proc/irq/*
true
"""
    assert app.direct(["/bin/sh", "-c", script]).stdout == ""
