"""Limits that an enclave imposes, and the manifest keys that a run names when it meets them."""

from __future__ import annotations

import errno
import json
import resource

import pytest

from applications import PYTHON, App


def test_an_enclave_is_as_small_as_it_says(app: App) -> None:
    app.settings |= {
        "sgx.enclave_size": '"256M"',
        "sgx.max_threads": "7",
        "sys.stack.size": '"1M"',
        "sys.fds.limit": "300",
    }
    done = app.enclave_python(
        "/programs/limits.py", "limits", "large_allocation", "threads", "descriptors",
        "many_small_allocations", "subprocesses", "fork",
    )  # fmt: skip
    got = json.loads(done.stdout)
    assert got["limits"]["AS"] == [256 << 20] * 2
    assert got["limits"]["STACK"][0] == 1 << 20
    assert got["limits"]["NOFILE"][0] == 300
    assert max(got["limits"]["CORE"]) <= 1
    assert got["large_allocation"] == "MemoryError"
    assert got["threads"] == [7, "RuntimeError"]
    assert got["descriptors"] == [300, errno.EMFILE]
    count, error = got["many_small_allocations"]
    assert 0 < count < 256
    assert error == errno.ENOMEM
    assert got["subprocesses"] == got["fork"] == 0
    told = [line for line in done.stderr.splitlines() if line.startswith("cloister: limit:")]
    assert len(told) == 2
    assert "an allocation of 1024 MiB failed in a process with" in told[0]
    assert "sgx.enclave_size = 256 MiB is all that a process can have" in told[0]
    assert "with 7 threads wanted one more and got EAGAIN; sgx.max_threads = 7" in told[1]


def test_a_process_that_fails_with_a_full_enclave_is_told(app: App) -> None:
    app.settings["loader.env.fail"] = '"1"'
    done = app.enclave_python("/programs/limits.py", "many_small_allocations", expect=3)
    assert "a process failed after it had grown to 25" in done.stderr
    assert "sgx.enclave_size = 256 MiB" in done.stderr


def test_a_process_that_fails_for_another_reason_is_not(app: App) -> None:
    app.settings["loader.env.fail"] = '"1"'
    done = app.enclave_python("/programs/limits.py", "fork", expect=3)
    assert "limit:" not in done.stderr


@pytest.mark.parametrize("mode", ["direct", "enclave"])
def test_subprocesses_can_be_forbidden(app: App, mode: str) -> None:
    app.settings |= {"sys.disallow_subprocesses": "true", "sgx.max_threads": "64"}
    attempts = ("subprocesses", "fork", "threads")
    if mode == "direct":
        done = app.direct([PYTHON, "/programs/limits.py", *attempts])
    else:
        done = app.enclave_python("/programs/limits.py", *attempts)
    got = json.loads(done.stdout)
    assert got["subprocesses"] == got["fork"] == errno.EAGAIN
    assert got["threads"][0] == (65 if mode == "direct" else 64)
    line = "the program tried to start a process and got EAGAIN; sys.disallow_subprocesses = true"
    assert done.stderr.count(line) == 1


def test_direct_mode_has_the_limits_of_a_library_os_only(app: App) -> None:
    del app.settings["sys.stack.size"]
    done = app.direct([PYTHON, "/programs/limits.py", "limits", "threads"])
    got = json.loads(done.stdout)
    assert got["limits"]["STACK"][0] == 256 << 10
    assert got["limits"]["NOFILE"][0] == 900
    assert got["limits"]["AS"][0] in (resource.getrlimit(resource.RLIMIT_AS)[0], -1)
    assert got["threads"] == [65, "all"]
    assert done.stderr == ""


def test_more_descriptors_than_the_machine_permits(app: App) -> None:
    app.settings["sys.fds.limit"] = "2000000000"
    done = app.direct(["/bin/true"], expect=1)
    assert "cannot start: sys.fds.limit = 2000000000: this machine permits " in done.stderr


def test_more_arguments_than_a_socket_holds(app: App) -> None:
    """The sandbox takes them when it needs no files any more: nobody waits for the other."""
    app.settings["sys.stack.size"] = '"8M"'
    words = ["/bin/echo", *(f"{number:04}" * 250 for number in range(400))]
    assert app.direct(words).stdout.split() == words[1:]


def test_arguments_that_the_stack_cannot_hold(app: App) -> None:
    app.settings["loader.env.LARGE"] = json.dumps("x" * 100_000)
    app.settings["loader.env.LARGE2"] = json.dumps("x" * 100_000)
    done = app.direct(["/bin/true"], expect=1)
    assert "cannot start: Argument list too long" in done.stderr
    assert "hint: sys.stack.size has to hold arguments and environment" in done.stderr


@pytest.mark.parametrize(("size", "told"), [('"256K"', "256 KiB"), ('"4M"', "4096 KiB")])
def test_a_segmentation_fault_is_told_with_the_size_of_the_stack(
    app: App, size: str, told: str
) -> None:
    """What overflows a small stack says nothing itself, and the shell of the user is elsewhere."""
    app.settings["sys.stack.size"] = size
    done = app.enclave_shell("kill -SEGV $$", expect=139)
    assert "cloister: the program ended by a segmentation fault (SIGSEGV)\n" in done.stderr
    assert f"its stack has {told} here (sys.stack.size)" in done.stderr
    assert "segmentation" not in app.enclave_shell("exit 3", expect=3).stderr
