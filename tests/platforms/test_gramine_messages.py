"""What Gramine and a program print on one standard error, told apart and translated."""

from __future__ import annotations

import io

import pytest

from cloister.platforms.gramine import messages


def translated(*pieces: bytes) -> bytes:
    out = io.BytesIO()
    translator = messages.Translator(lambda data: (out.write(data), None)[1])
    for piece in pieces:
        translator.feed(piece)
    translator.finish()
    return out.getvalue()


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (
            "[P1:T1:python3] warning: Disallowing access to file 'x.py'; file is not allowed.",
            "denied: file x.py",
        ),
        (
            '[P1:T1:] error: Mounting "file:no" (chroot) under /dir with space failed: Nowhere',
            "mount of no at /dir with space failed: Nowhere",
        ),
        (
            "[P1:T1:] error: libos_init() failed in init_exec_handle: Exec format error (ENOEXEC)",
            "no program of this machine, nor a script",
        ),
        ("[P1:T1:x] warning: pf_open failed: Callback failed", "another key, or empty"),
        ("[P1:T1:x] warning: pf_open failed: Invalid path", "moved or renamed outside"),
        ("[P1:T1:x] warning: pf_open failed: Invalid header", "not encrypted, or cut off"),
        ("[P1:T1:x] warning: pf_open failed: Out of luck", "does not open: Out of luck"),
        (
            "[P1:T1:x] warning: PalStreamChangeName failed: Operation denied (PAL_ERROR_DENIED)",
            "refused an operation on an encrypted file: Operation denied (PAL_ERROR_DENIED)",
        ),
        (
            "[P1:libos] error: Child process (vmid: 0x2) got disconnected",
            "a process of the program was killed from outside (process 0x2)",
        ),
        (
            "[P1:T1:] error: Discarding cmdline arguments (/dev/shm/x/c more [...]) because "
            "loader.argv was specified in the manifest.",
            "command-line arguments are dropped, loader.argv stands: more and what follows",
        ),
        (
            "[P1:T1:a] warning: Disallowing access to file 'libgomp.so.1'; file is not allowed.",
            "passed over: a library libgomp.so.1",
        ),
        (
            "[P1:T1:a] warning: Disallowing creating file '/lib/x/__pycache__/y.cpython-311.pyc.73'"
            "; file is not trusted or allowed.",
            "denied: keeping compiled Python modules",
        ),
        (
            "[P1:T1:a] warning: Disallowing creating file '/lib/x/y'"
            "; file is not trusted or allowed.",
            "denied: creating /lib/x/y",
        ),
        (
            "[P1:T1:a] warning: The app tried to use flock, but it's turned off "
            "(sys.experimental__enable_flock = false)",
            "denied: flock",
        ),
        (
            "[P1:T1:app] error: Disallowing write/append to a trusted file 'x'",
            "writing trusted file x",
        ),
        (
            'error: Mounting "file:X" (chroot) under /p failed: No such file or directory (ENOENT)',
            "mount of X at /p failed: No such file or directory (ENOENT)",
        ),
        ("error: PAL failed at parsing the manifest: INVAL", "does not read the manifest: INVAL"),
        (
            "Cannot connect to AESM service (tried sgx_aesm_socket_base and "
            "/var/run/aesmd/aesm.socket UNIX sockets).",
            "quoting service aesmd does not answer",
        ),
        (
            "error: Cannot open device /dev/sgx_enclave. This may happen because the current user"
            " has insufficient permissions",
            "/dev/sgx_enclave does not open",
        ),
        (
            "error: Cannot connect to aesm_service (tried sgx_aesm_socket_base and "
            "/var/run/aesmd/aesm.socket UNIX sockets).",
            "quoting service aesmd does not answer",
        ),
        ("error: AESM service returned error 44; this may indicate that", "error 44"),
        ("error: Initializing enclave failed: -22", "the processor does not start this enclave"),
        ("error: No 'loader.entrypoint' is specified in the manifest", "not the one for which"),
        (
            "(libos_init.c:1:libos_init) [P1:T1:] error: libos_init() failed in init_exec_handle: "
            "Permission denied (EACCES)",
            "not trusted, or not executable",
        ),
        (
            "(libos_fs.c:5:f) [P1:T1:a] warning: Disallowing access to file 'x'; file is not "
            "trusted or allowed.",
            "denied: file x is neither trusted nor allowed",
        ),
        (
            "[P1:T1:a] error: Disallowing create/write/append to a trusted file 'x'",
            "writing trusted file x",
        ),
        (
            "error: PAL failed argv handling wasn't configured in the manifest, but cmdline "
            "arguments were specified.",
            "this program takes no arguments",
        ),
        (
            "error: PAL failed at parsing the manifest: Cannot parse 'loader.log_level'",
            "loader.log_level in the manifest is not what Gramine expects",
        ),
        ("error: PAL failed Out of host memory", "Gramine did not start: Out of host memory"),
        ("error: PAL failed setting personality failed", "address space randomisation"),
        ("error: Hash of entrypoint does not match with the reference hash in manifest", "not the"),
        (
            "secret_provision_start: Secret Provisioning could not connect to any of the servers "
            "specified in SECRET_PROVISION_SERVERS; last mbedTLS error was -68",
            "no key server of SECRET_PROVISION_SERVERS answers (mbedTLS error -68)",
        ),
        ("[P1:T1:a] warning: key 'default' is not set", "key default is not set"),
        ("[P1:T1:a] warning: pf_open failed: Wrong MAC", "does not open: Wrong MAC"),
        (
            'error: Mounting "file:ca.crt" (chroot) under /ca.crt failed: Operation not permitted '
            "(EPERM)",
            "tampered: trusted file ca.crt",
        ),
        ("error: load_enclave() failed with error: EPERM", "the enclave was not loaded: EPERM"),
    ],
)
def test_lines_of_gramine(line: str, expected: str) -> None:
    told = translated(line.encode() + b"\n").decode()
    assert told.startswith("cloister: ")
    assert expected in told


@pytest.mark.parametrize(
    "line",
    [
        "(libos_parser.c:1671:warn_unsupported_syscall) [P1:T3:a] warning: Unsupported system call "
        "prctl",
        "[P1:T3:a] warning: Ignoring FUTEX_CLOCK_REALTIME flag",
    ],
)
def test_noise_is_dropped(line: str) -> None:
    assert translated(line.encode() + b"\n") == b""


def test_where_a_line_comes_from_does_not_hide_it_after_the_program_spoke() -> None:
    line = b"(a.c:5:f) [P1:T1:a] warning: Disallowing access to file 'x'; file is not allowed.\n"
    assert translated(b"the program\n", line).startswith(b"the program\ncloister: denied: file x")
    banner = b"(warn.c:117:print) Gramine detected the following insecure configurations:\n"
    assert translated(banner, b"error: PAL failed DENIED\n").startswith(banner + b"cloister: ")


def test_everything_else_passes_through_as_it_is() -> None:
    for data in (b"plain\n", b"\xff\x00binary", b"[not gramine\n", b"error: of the program\n"):
        assert translated(data) == data
    whole = b"Password: "
    out: list[bytes] = []
    messages.Translator(out.append).feed(whole)
    assert b"".join(out) == whole, "a prompt is shown before its line ends"


def test_what_looks_like_gramines_after_the_program_spoke_is_the_programs() -> None:
    started = b"[P1:T1:x] warning: Disallowing access to file 'f'; file is not allowed.\n"
    own = b"reading config\nerror: Cannot parse 'config.yaml': bad line\nerror: PAL failed\n" * 2
    assert translated(own) == own
    assert translated(own, started).startswith(own + b"cloister: denied: file f")
    translator = messages.Translator(lambda _: None)
    translator.feed(own)
    assert not translator.failed_to_start


def test_the_list_of_insecure_options_is_no_word_of_the_program() -> None:
    banner = (
        b"-----\nGramine detected the following insecure configurations:\n\n  - sgx.debug = true\n"
    )
    told = translated(banner, b"error: PAL failed at parsing the manifest: INVAL\n")
    assert told.startswith(banner + b"cloister: Gramine does not read the manifest")
    whole = banner + b"error: PAL failed at parsing the manifest: INVAL\n"
    for size in (1, 7, 20):
        assert translated(*(whole[i : i + size] for i in range(0, len(whole), size))) == told


def test_a_line_may_come_in_pieces() -> None:
    line = b"[P1:T1:x] warning: Disallowing access to file 'f'; file is not allowed.\n"
    pieces = [line[i : i + 1] for i in range(len(line))]
    assert translated(*pieces) == translated(line)
    assert translated(line, line) == translated(line), "told once"


def test_what_says_less_than_the_line_before_is_left_out() -> None:
    start_dir = b"[P1:T1:] error: Invalid 'fs.start_dir' in manifest.\n"
    general = b"[P1:T1:] error: libos_init() failed in init_mount: Invalid argument (EINVAL)\n"
    assert b"a mount failed" in translated(general)
    assert translated(start_dir, general) == translated(start_dir)
    assert translated(start_dir).startswith(b"cloister: fs.start_dir is not there\n")


@pytest.mark.parametrize(
    "text",
    ["lib_AESGCMDecrypt failed: -6", "EOF", "newfstatat: ignoring AT_NO_AUTOMOUNT."],
)
def test_lines_that_say_nothing_to_users_are_left_out(text: str) -> None:
    assert translated(f"[P1:T1:x] warning: {text}\n".encode()) == b""
