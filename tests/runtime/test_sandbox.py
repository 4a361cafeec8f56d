"""The application's processes: exit codes, signals, isolation, nothing left behind."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from applications import CLOISTER, KEY, PYTHON, App


def test_output_and_exit_code_are_the_programs(app: App) -> None:
    done = app.direct(["/bin/sh", "-c", "echo out; echo err >&2; exit 7"], expect=7)
    assert (done.stdout, done.stderr) == ("out\n", "err\n")


def test_standard_input_is_the_callers(app: App) -> None:
    assert app.direct(["/bin/cat"], input="from outside").stdout == "from outside"


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV, signal.SIGABRT, signal.SIGTERM])
def test_a_signal_death_is_reported_as_a_shell_would(app: App, number: signal.Signals) -> None:
    app.direct(["/bin/sh", "-c", f"kill -{number.value} $$"], expect=128 + number)


def test_a_missing_program_is_told(app: App) -> None:
    done = app.direct(["/bin/there-is-no-such-program"], expect=1)
    assert done.stderr == (
        "cloister: error: /bin/there-is-no-such-program: cannot start: No such file or directory\n"
        "hint: libos.entrypoint is a path inside the tree: does an entry of fs.mounts show it, and"
        " is the file there on the host? Or does it begin with #! and a program that is not in the"
        " tree? cloister run --shell looks around inside\n"
    )


@pytest.mark.parametrize(
    ("content", "mode", "reason", "hint"),
    [
        ("#!/bin/sh\n", 0o644, "Permission denied", "is it executable (chmod +x)"),
        ("plain text\n", 0o755, "Exec format error", "nor a script that begins with #!"),
    ],
)
def test_a_file_that_is_no_program_is_told(
    app: App, content: str, mode: int, reason: str, hint: str
) -> None:
    file = app.directory / "program"
    file.write_text(content)
    file.chmod(mode)
    app.mounts.append(f'{{ path = "/program", uri = "file:{file}" }}')
    done = app.direct(["/program"], expect=1)
    assert done.stderr.startswith(f"cloister: error: /program: cannot start: {reason}\nhint: ")
    assert hint in done.stderr


def test_arguments_that_the_manifest_does_not_let_in(app: App) -> None:
    app.direct(["/bin/true"])
    done = app.cloister("run", "--mode", "direct", "app", "--", "-x", expect=2)
    assert "the manifest fixes the arguments" in done.stderr


def test_no_privileges_and_no_way_to_more(app: App) -> None:
    script = """
grep -E 'Cap(Prm|Eff|Bnd|Amb)|NoNewPrivs' /proc/self/status
unshare -U true 2>/dev/null && echo escaped
mount -t tmpfs none /usr 2>/dev/null && echo mounted
echo $(ls /proc | grep -c '^[0-9]') processes
"""
    done = app.direct(["/bin/sh", "-c", script])
    lines = done.stdout.split("\n")
    assert lines[:4] == [f"Cap{kind}:\t0000000000000000" for kind in ("Prm", "Eff", "Bnd", "Amb")]
    assert lines[4] == "NoNewPrivs:\t1"
    assert "escaped" not in done.stdout
    assert "mounted" not in done.stdout
    assert int(lines[5].split()[0]) < 8


def test_calls_that_a_library_os_does_not_offer(app: App) -> None:
    name = f"cloister-test-{time.monotonic_ns()}"
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(f"\0{name}")
        listening.listen(1)
        done = app.direct([PYTHON, "/programs/forbidden.py", name])
    outcomes = {kind: set(names) for kind, names in json.loads(done.stdout).items()}
    scoped = _landlock_version() >= 6
    reached = outcomes["refused with EPERM" if scoped else "permitted"]
    reached.remove("the host's abstract socket")
    assert outcomes == {
        "permitted": {
            *("fork", "thread", "exec", "mmap", "inet", "inet6", "unix", "netlink 0"),
            *("personality query", "interfaces", "own abstract socket"),
        },
        "refused with EPERM": {
            *("clone(CLONE_NEWUSER)", "ioctl(TIOCSTI)", "READ_IMPLIES_EXEC"),
        },
        "no such family": {"vsock", "packet", "alg", "netlink 12"},
        "absent": {
            *("mount", "unshare", "setns", "ptrace", "bpf", "io_uring_setup", "clone3", "keyctl"),
        },
    }


def _landlock_version() -> int:
    return int(ctypes.CDLL(None).syscall(444, None, ctypes.c_size_t(0), 1))


def test_the_runtimes_memory_is_out_of_reach(app: App) -> None:
    done = app.direct(["/bin/sh", "-c", "cat /proc/1/mem; cat /proc/1/environ"], expect=1)
    assert done.stdout == ""
    assert done.stderr.count("/proc/1/") == 2
    assert done.stderr.count("Operation not permitted") == 2


def test_the_program_sees_only_its_own_tree(app: App, tmp_path: Path) -> None:
    secret = tmp_path / "outside"
    secret.write_text("outside")
    (app.directory / "inside").write_text("inside")
    done = app.direct(["/bin/sh", "-c", f"cat /inside; cat {secret}"], expect=1)
    assert done.stdout == "inside"
    assert "No such file" in done.stderr


def test_mounts_below_a_tmpfs(app: App) -> None:
    (app.directory / "data" / "deep").mkdir(parents=True)
    (app.directory / "data" / "deep" / "file").write_text("below\n")
    (app.directory / "single").write_text("single\n")
    app.mount("/tmp", kind="tmpfs")
    app.mount("/tmp/a/b", "file:data")
    app.mount("/tmp/single", "file:single")
    app.mount("/tmp/inner", kind="tmpfs")
    script = (
        "cat /tmp/a/b/deep/file /tmp/single; echo x > /tmp/inner/x; echo y > /tmp/a/b/y;"
        "ls /tmp /tmp/inner; ls /.cloister"
    )
    done = app.direct(["/bin/sh", "-c", script], expect=2)
    assert done.stdout.split() == [
        "below", "single", "/tmp:", "a", "inner", "single", "/tmp/inner:", "x",
    ]  # fmt: skip
    assert "/.cloister" in done.stderr
    assert (app.directory / "data" / "y").read_text() == "y\n"


def test_a_forwarded_signal_reaches_the_program(app: App) -> None:
    script = "trap 'echo caught; exit 5' TERM; echo ready; while :; do sleep 0.1; done"
    app.direct(["/bin/true"])
    app.settings["loader.argv"] = f'["/bin/sh", "-c", "{script}"]'
    (app.directory / "app.manifest").write_text(app.text().replace("/bin/true", "/bin/sh"))
    process = subprocess.Popen(
        [*CLOISTER, "run", "--mode", "direct", "app"],
        cwd=app.directory,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.terminate()
    assert process.wait(20) == 5
    assert process.stdout.read() == "caught\n"


@pytest.mark.parametrize("name", ["HUP", "INT", "QUIT", "TERM"])
def test_what_the_caller_ignores_is_ignored(app: App, name: str) -> None:
    """As nohup wants it of SIGHUP, and a script's shell of SIGINT for what runs in background."""
    app.build_shell()
    (app.directory / "nohup").write_text(f"trap '' {name}; exec \"$@\"")
    script = "echo ready; sleep 0.5; echo done"
    for program in ([*CLOISTER, "run", "app"], ["sh"]):  # natively it is so
        with subprocess.Popen(
            ["sh", "nohup", *program, "-c", script],
            cwd=app.directory,
            stdout=subprocess.PIPE,
            text=True,
        ) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            process.send_signal(signal.Signals[f"SIG{name}"])
            assert process.stdout.read() == "done\n"
        assert process.returncode == 0


def test_no_signal_is_lost_while_the_program_starts(app: App) -> None:
    app.build_shell()
    app.run_shell("true")
    for moment in range(24):
        with app.start_shell("exec sleep 1000") as run:
            assert run.stderr is not None
            assert "SIMULATED" in run.stderr.readline()
            time.sleep(moment / 500)
            run.terminate()
            assert run.wait(20) in (-signal.SIGTERM, 128 + signal.SIGTERM)


def test_no_children_are_left_to_process_1(app: App) -> None:
    """In some containers it takes no notice of them."""
    app.build_shell()
    adopting = (
        "import ctypes, os, subprocess, sys; ctypes.CDLL(None).prctl(36, 1, 0, 0, 0);"  # subreaper
        "subprocess.run(sys.argv[1:], check=True);"
        "print(len(open(f'/proc/self/task/{os.getpid()}/children').read().split()))"
    )
    command = [sys.executable, "-c", adopting, *CLOISTER, "run", "app", "-c", ":"]
    for _ in range(20):  # on a busy machine some take too long to die
        done = subprocess.run(command, cwd=app.directory, stdout=subprocess.PIPE, check=True)
        if int(done.stdout) == 0:
            return
    raise AssertionError(done.stdout)


def test_a_caller_that_wants_no_news_of_children(app: App) -> None:
    app.build_shell()
    ignoring = "import os, sys; from signal import *; signal(SIGCHLD, SIG_IGN);"
    command = [sys.executable, "-c", f"{ignoring} os.execv(sys.argv[1], sys.argv[1:])"]
    done = subprocess.run(
        [*command, *CLOISTER, "run", "app", "-c", "ls / || exit 2; exit 7"],
        cwd=app.directory,
        check=False,
    )
    assert done.returncode == 7


def test_an_interrupt_from_the_terminal_ends_the_program(app: App) -> None:
    app.direct(["/bin/true"])
    app.settings["libos.entrypoint"] = '"/bin/sh"'
    script = "trap 'exit 9' INT; echo ready; while :; do sleep 0.1; done"
    app.settings["loader.argv"] = json.dumps(["/bin/sh", "-c", script])
    (app.directory / "app.manifest").write_text(app.text())
    process = subprocess.Popen(
        [*CLOISTER, "run", "--mode", "direct", "app"],
        cwd=app.directory,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    os.killpg(process.pid, signal.SIGINT)
    assert process.wait(20) == 9
    assert process.communicate() == ("", "")


@pytest.mark.long
def test_the_runtime_survives_what_a_program_does(app: App) -> None:
    for name in ("plain", "secret"):
        (app.directory / name).mkdir()
    app.mount("/plain", "file:plain")
    app.mount("/secret", "file:secret", "encrypted")
    app.mount("/memory", kind="tmpfs")
    app.settings |= {
        "sgx.allowed_files": '["file:plain"]',
        "fs.insecure__keys.default": f'"{KEY}"',
    }
    done = app.enclave_python("/programs/abuse.py", "/plain", "/secret", "/memory")
    subprocess.run(["rm", "-rf", "plain", "secret"], cwd=app.directory, check=True)  # too deep
    assert all(json.loads(done.stdout))
    assert "internal error" not in done.stderr


def test_arguments_and_environment_from_encrypted_files(app: App) -> None:
    """Keys arrive before the program's arguments are set, so the host need not see these."""
    for name, content in (("args", b"/bin/sh\0-c\0echo $SECRET-$FIXED\0"), ("env", b"SECRET=s3\0")):
        (app.directory / name).write_bytes(content)
    (app.directory / "wrap-key").write_bytes(bytes.fromhex(KEY))
    (app.directory / "wrap-key").chmod(0o600)
    (app.directory / "secret").mkdir()
    for name in ("args", "env"):
        app.cloister("encrypt", "-k", "wrap-key", name, f"secret/{name}")
    app.mount("/secret", "file:secret", "encrypted")
    app.settings |= {
        "loader.argv_src_file": '"file:secret/args"',
        "loader.env_src_file": '"file:secret/env"',
        "loader.env.FIXED": '{ value = "fixed" }',
        "loader.env.HOME": "{ passthrough = true }",
        "fs.insecure__keys.default": f'"{KEY}"',
    }
    app.build_shell(arguments=False)
    assert app.cloister("run", "app").stdout == "s3-fixed\n"


@pytest.mark.parametrize("victim", ["runtime", "program", "process 1"])
def test_nothing_is_left_when_either_side_is_killed(app: App, victim: str) -> None:
    marker = f"cloister-test-{os.getpid()}-{time.monotonic_ns()}"
    app.direct(["/bin/true"])
    program = "import time; print(1, flush=True); time.sleep(1000)"
    script = f"sleep 1000 & exec {PYTHON} -c '{program}' {marker}"
    app.settings["loader.argv"] = f'["/bin/sh", "-c", "{script}"]'
    (app.directory / "app.manifest").write_text(app.text().replace("/bin/true", "/bin/sh"))
    process = subprocess.Popen(
        [*CLOISTER, "run", "--mode", "direct", "app"],
        cwd=app.directory,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "1\n"
    inside = [pid for pid in _processes_with(marker) if pid != process.pid]
    assert len(inside) == 1
    killed = {
        "runtime": process.pid,
        "program": inside[0],
        "process 1": int(_status_field(inside[0], "PPid")),
    }[victim]
    assert killed > 1
    os.kill(killed, signal.SIGKILL)
    assert process.wait(20) == (-signal.SIGKILL if victim == "runtime" else 128 + signal.SIGKILL)
    _wait_until_gone(marker)
    assert not [
        line for line in Path("/proc/mounts").read_text().splitlines() if "cloister" in line
    ]


TURN = "import os, sys; os.sched_setaffinity(0, {int(sys.argv[1])})\nwhile True: pass"


def test_output_ends_with_the_run_on_a_busy_machine(app: App) -> None:
    """What keeps processors awake has only the time that others leave, also to die in."""
    app.build_shell()
    with contextlib.ExitStack() as stack:
        for processor in os.sched_getaffinity(0):
            busy = subprocess.Popen([sys.executable, "-c", TURN, str(processor)])
            stack.callback(busy.wait)
            stack.callback(busy.kill)
        reading, writing = os.pipe()  # a descriptor more, as of a shell's 3>&1
        with app.start_shell("echo ran", pass_fds=[writing]) as run:
            os.close(writing)
            run.wait(60)
            ended = time.monotonic()
            assert os.read(reading, 1) == b""
            assert run.communicate(timeout=60)[0] == "ran\n"
            assert time.monotonic() - ended < 1
        os.close(reading)


def _status_field(pid: int, field: str) -> str:
    text = Path(f"/proc/{pid}/status").read_text()
    return text.partition(f"\n{field}:")[2].split("\n")[0].strip()


def _processes_with(marker: str) -> list[int]:
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                command = (entry / "cmdline").read_bytes()
            except OSError:
                continue
            if marker.encode() in command and b"cloister" not in command.split(b"\0")[2:3]:
                found.append(int(entry.name))
    return found


def _wait_until_gone(marker: str) -> None:
    deadline = time.monotonic() + 10
    while _processes_with(marker):
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.parametrize("own", [True, False])
def test_a_shell_to_look_around(app: App, own: bool) -> None:
    """The tree is the manifest's; one without a shell gets the host's, apart."""
    (app.directory / "data").write_text("data\n")
    if own:
        app.direct(["/bin/true"])
    else:
        app.settings["libos.entrypoint"] = '"/no/such/program"'
        (app.directory / "app.manifest").write_text(app.text())
    shell = ("run", "--mode", "direct", "--shell", "app")
    done = app.cloister(
        *shell, input="cat /data; ls /usr >/dev/null && echo whole; exit 4", expect=4
    )
    assert done.stdout == ("data\nwhole\n" if own else "data\n")
    assert app.cloister(*shell, "-c", "ls -a /").stdout.count(".cloister-shell") == (not own)


def test_no_shell_in_an_enclave(app: App) -> None:
    done = app.cloister("run", "--shell", "app", expect=2)
    assert "hint: cloister run --mode direct --shell app" in done.stderr
