"""A run whose messages nobody reads, or nobody can write."""

from __future__ import annotations

import os
import subprocess

import pytest

from applications import CLOISTER, App


@pytest.mark.parametrize("log", ["full disk", "reader that left"])
def test_a_run_needs_nobody_who_takes_its_messages(app: App, log: str) -> None:
    app.settings["sgx.max_threads"] = "4"
    app.build_shell()
    if log == "full disk":
        messages = os.open("/dev/full", os.O_WRONLY)
    else:
        reading, messages = os.pipe()
        os.close(reading)
    script = "sleep 0 & sleep 0 & sleep 0 & sleep 0 & sleep 0 & wait; echo ran; exit 3"
    done = subprocess.run(
        [*CLOISTER, "run", "app", "-c", script],
        cwd=app.directory,
        stdout=subprocess.PIPE,
        stderr=messages,
        text=True,
        check=False,
    )
    os.close(messages)
    assert (done.returncode, done.stdout) == (3, "ran\n")


def test_a_log_file_on_a_full_disk(app: App) -> None:
    app.settings |= {"loader.log_file": '"/dev/full"', "loader.log_level": '"all"'}
    assert app.enclave_shell("echo ran").stdout == "ran\n"
