"""What this machine can do: every requirement of a run, one by one, and then a real run.

Each check looks at one thing and says what it means and which command mends it. The first group
decides whether programs can run here; the rest is for information. The checks read ``/proc`` and
``/sys`` below a root directory that is given, so that other machines can be described in tests.
"""

from __future__ import annotations

import enum
import os
import platform
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from cloister.errors import CloisterError, SandboxError
from cloister.files import config_home, data_home

OLDEST_KERNEL = (5, 4)
OWNER_COMMANDS = (
    "key, encrypt, decrypt, inspect, verify, rekey, recover, certs, build, sign, measure, "
    "quote, attest, secret, audit, serve"
)
"""Commands that work wherever Python does."""


class State(enum.Enum):
    """How a check ended."""

    OK = "ok"
    MISSING = "missing"
    UNKNOWN = "unknown"  # cannot be told from here; the run at the end decides


@dataclass(frozen=True)
class Finding:
    """One line of the diagnosis.

    Attributes:
        name: what was looked at.
        state: how it is.
        meaning: what was found, and what follows from it.
        mend: the command that enables it, if there is one.
        needed: whether programs cannot run without it.
    """

    name: str
    state: State
    meaning: str
    mend: str | None = None
    needed: bool = True


@dataclass(frozen=True)
class Machine:
    """Where the checks look.

    Attributes:
        root: directory that holds ``proc``, ``sys`` and ``dev``.
        release: ``uname -r``.
        system: ``uname -s``.
        architecture: ``uname -m``.
        is_root: whether this user is the machine's (or container's) root.
    """

    root: Path
    release: str
    system: str
    architecture: str
    is_root: bool

    @classmethod
    def here(cls) -> Machine:
        """Return this machine."""
        name = platform.uname()
        return cls(Path("/"), name.release, name.system, name.machine, os.geteuid() == 0)

    def path(self, path: Path) -> Path:
        """Return where an absolute path is there."""
        return self.root / path.relative_to("/")

    def text(self, path: str) -> str | None:
        """Return the text of a small file, None if it cannot be read."""
        try:
            return (self.root / path).read_text(errors="replace").strip()
        except OSError:
            return None

    def number(self, path: str) -> int | None:
        """Return the number in a file, None if there is none."""
        text = self.text(path)
        return int(text) if text is not None and re.fullmatch(r"-?\d+", text) else None

    def container(self) -> str | None:
        """Return what kind of container this is, None if it is none or cannot be told."""
        if (self.root / ".dockerenv").exists():
            return "Docker"
        if (self.root / "run/.containerenv").exists():
            return "Podman"
        return "Kubernetes" if "KUBERNETES_SERVICE_HOST" in os.environ else None


def diagnose(machine: Machine, try_run: Callable[[], None] | None) -> Iterator[Finding]:
    """Yield all findings, in the order in which they are worth reading.

    Args:
        machine: where to look.
        try_run: makes a real run, or raises; None leaves it out.
    """
    needed = [_system(machine), _kernel(machine), _python(), *_namespaces(machine)]
    needed += [_fuse(machine), _seccomp(machine)]
    yield from needed
    if try_run is not None:
        yield _real_run(machine, try_run, is_explained=not can_run(needed))
    yield from (_own_directories(), _sgx(machine), _tdx(machine), _gramine(), _pytorch())


def can_run(findings: Iterable[Finding]) -> bool:
    """Tell whether programs can run here: nothing that a run needs is missing."""
    return all(found.state is not State.MISSING for found in findings if found.needed)


def _system(machine: Machine) -> Finding:
    found = f"{machine.system} {machine.architecture}"
    if (machine.system, machine.architecture) == ("Linux", "x86_64"):
        return Finding("system", State.OK, found)
    return Finding(
        "system", State.MISSING, f"{found}; programs run on Linux x86_64 only",
        "use the owner's commands here, and run on a Linux machine",
    )  # fmt: skip


def _kernel(machine: Machine) -> Finding:
    numbers = re.match(r"(\d+)\.(\d+)", machine.release)
    version = (int(numbers[1]), int(numbers[2])) if numbers else (0, 0)
    oldest = ".".join(map(str, OLDEST_KERNEL))
    if version >= OLDEST_KERNEL:
        return Finding("kernel", State.OK, f"{machine.release}; {oldest} or later is needed")
    return Finding(
        "kernel", State.MISSING, f"{machine.release} is older than {oldest}",
        "install a newer kernel, and reboot",
    )  # fmt: skip


def _python() -> Finding:
    return Finding("python", State.OK, f"{platform.python_version()} ({sys.executable})")


def _namespaces(machine: Machine) -> Iterator[Finding]:
    """User namespaces: whether the kernel has them, allows enough, and lets this user make them."""
    name = "user namespaces"
    if not (machine.root / "proc/self/ns/user").exists():
        yield Finding(
            name, State.MISSING, "this kernel was built without them",
            "use a kernel with CONFIG_USER_NS",
        )  # fmt: skip
        return
    least = {
        kind: machine.number(f"proc/sys/user/max_{kind}_namespaces")
        for kind in ("user", "mnt", "pid", "ipc", "uts")
    }
    none_left = [kind for kind, number in least.items() if number == 0]
    if none_left:
        settings = " ".join(f"user.max_{kind}_namespaces=10000" for kind in none_left)
        yield Finding(
            name, State.MISSING, f"the limit of {', '.join(none_left)} namespaces is 0",
            f"sudo sysctl -w {settings}",
        )  # fmt: skip
    else:
        yield Finding(name, State.OK, f"the kernel allows {least['user'] or 'some'}")
    if machine.is_root:
        return
    for setting, forbids, who in (
        ("kernel.unprivileged_userns_clone", 0, "Debian's switch"),
        ("kernel.apparmor_restrict_unprivileged_userns", 1, "Ubuntu's AppArmor"),
    ):
        value = machine.number(f"proc/sys/{setting.replace('.', '/')}")
        if value is not None:
            is_forbidden = value == forbids
            yield Finding(
                setting,
                State.MISSING if is_forbidden else State.OK,
                f"{who} {'keeps' if is_forbidden else 'does not keep'} ordinary users from "
                "making them",
                f"sudo sysctl -w {setting}={1 - forbids}  (to keep it: a file in /etc/sysctl.d)"
                if is_forbidden
                else None,
            )


def _fuse(machine: Machine) -> Finding:
    device, container = machine.root / "dev/fuse", machine.container()
    if not device.exists():
        return Finding(
            "/dev/fuse", State.MISSING, "is not there; the program's file tree is served by it",
            "sudo modprobe fuse" if container is None else
            f"start the {container} container with --device /dev/fuse",
        )  # fmt: skip
    if not os.access(device, os.R_OK | os.W_OK):
        return Finding(
            "/dev/fuse", State.MISSING, "may not be opened by this user",
            "sudo chmod 666 /dev/fuse" if container is None else
            f"outside of the {container} container, then start it anew: sudo chmod 666 /dev/fuse",
        )  # fmt: skip
    return Finding("/dev/fuse", State.OK, "is there and may be opened")


def _seccomp(machine: Machine) -> Finding:
    actions = machine.text("proc/sys/kernel/seccomp/actions_avail")
    if actions is None:
        return Finding(
            "seccomp", State.UNKNOWN, "the kernel does not tell whether it has system call filters"
        )
    if {"errno", "kill_process"} <= set(actions.split()):
        return Finding("seccomp", State.OK, "the kernel has system call filters")
    return Finding(
        "seccomp", State.MISSING, f"the kernel offers only: {actions}",
        "use a kernel with CONFIG_SECCOMP_FILTER",
    )  # fmt: skip


def _own_directories() -> Finding:
    """Whether keys and the simulated platform can be kept."""
    name = "own directories"
    mend = "set HOME, or XDG_DATA_HOME and XDG_CONFIG_HOME, to directories of this user"
    try:
        for home in (data_home(), config_home()):
            nearest = next(path for path in (home, *home.parents) if path.exists())
            with tempfile.TemporaryDirectory(prefix=".cloister-doctor-", dir=nearest):
                pass
    except OSError as error:
        found = f"{home} cannot be written: {error.strerror}"
    except CloisterError as error:
        found = error.message
    else:
        return Finding(name, State.OK, f"{data_home()} can be written", needed=False)
    lost = f"{found}; no key is made and no SIMULATED enclave starts, direct mode works"
    return Finding(name, State.MISSING, lost, mend, needed=False)


def _real_run(machine: Machine, try_run: Callable[[], None], *, is_explained: bool) -> Finding:
    """Make a run; what the kernel or a container forbids shows only then."""
    try:
        try_run()
    except (CloisterError, OSError) as error:
        hint = error.hint if isinstance(error, CloisterError) else None
        container = machine.container()
        if is_explained:
            hint = None
        elif container is not None and isinstance(error, SandboxError):
            hint = (
                f"let the {container} container do what a run needs: --device /dev/fuse "
                "--security-opt seccomp=unconfined --security-opt apparmor=unconfined "
                "--security-opt systempaths=unconfined"
            )
        return Finding("a run", State.MISSING, f"a tiny program did not start: {error}", hint)
    return Finding("a run", State.OK, "a tiny program ran in a tree of its own")


def _sgx(machine: Machine) -> Finding:
    simulated = "enclaves here are SIMULATED"
    flags = re.search(r"^flags\s*:.*$", machine.text("proc/cpuinfo") or "", re.MULTILINE)
    device, provision = machine.root / "dev/sgx_enclave", machine.root / "dev/sgx_provision"
    if flags is not None and "sgx" not in flags[0].split():
        return Finding(
            "SGX", State.MISSING, f"the processor has none, or it is off; {simulated}",
            "enable SGX in the BIOS, if the processor has it", needed=False,
        )  # fmt: skip
    if not device.exists():
        return Finding(
            "SGX", State.MISSING, f"the driver is not loaded; {simulated}",
            "use a kernel of 5.11 or later with CONFIG_X86_SGX", needed=False,
        )  # fmt: skip
    if not os.access(device, os.R_OK | os.W_OK):
        return Finding(
            "SGX", State.MISSING, f"/dev/sgx_enclave may not be opened by this user; {simulated}",
            "sudo usermod -aG sgx $USER, and log in again", needed=False,
        )  # fmt: skip
    if not provision.exists():
        return Finding(
            "SGX", State.MISSING, "/dev/sgx_provision is not there: enclaves start, but get no"
            " quotes", "let the container have it, too (--device /dev/sgx_provision)", needed=False,
        )  # fmt: skip
    if _has_option(machine.text("proc/self/mountinfo") or "", "/dev", "noexec"):
        return Finding(
            "SGX", State.MISSING, "/dev is mounted noexec, and an enclave is mapped from there to"
            f" be executed; {simulated}", "sudo mount -o remount,exec /dev", needed=False,
        )  # fmt: skip
    aesm = (machine.root / "var/run/aesmd/aesm.socket").exists()
    return Finding(
        "SGX", State.OK,
        f"driver: /dev/sgx_enclave; quoting service (aesmd) {'runs' if aesm else 'does not run'}",
        None if aesm else "sudo apt-get install sgx-aesm-service libsgx-aesm-quote-ex-plugin"
        " libsgx-dcap-default-qpl", needed=False,
    )  # fmt: skip


def _has_option(mounts: str, place: str, option: str) -> bool:
    """Tell whether what is mounted at ``place`` has an option (proc_pid_mountinfo(5))."""
    lines = [line.split() for line in mounts.splitlines()]
    there = [fields for fields in lines if len(fields) > 5 and fields[4] == place]
    return bool(there) and option in there[-1][5].split(",")


def _tdx(machine: Machine) -> Finding:
    from cloister.platforms.tdx.presence import GUEST_DEVICE, REGISTER_FILE, REPORTS
    from cloister.platforms.tdx.register import DeviceRegister

    if not any(machine.path(name).exists() for name in (GUEST_DEVICE, REGISTER_FILE)):
        return Finding("TDX", State.MISSING, "this is no TDX virtual machine", needed=False)
    if not machine.path(REPORTS).is_dir():
        return Finding(
            "TDX", State.MISSING,
            "this is a TDX virtual machine, but its kernel offers no reports in configfs",
            "sudo modprobe tdx_guest; sudo mount -t configfs none /sys/kernel/config"
            " (Linux 6.7 or later)", needed=False,
        )  # fmt: skip
    if not machine.is_root:
        return Finding(
            "TDX", State.MISSING, "this is a TDX virtual machine; only root gets its quotes",
            "run as root", needed=False,
        )  # fmt: skip
    if not machine.path(REGISTER_FILE).exists():
        try:
            DeviceRegister(machine.path(GUEST_DEVICE)).require()
        except CloisterError as error:
            return Finding("TDX", State.MISSING, error.message, error.hint, needed=False)
    return Finding("TDX", State.OK, "this is a TDX virtual machine", needed=False)


def _gramine() -> Finding:
    """Whether Gramine is installed whole, in a version that is known to work."""
    from cloister.platforms.gramine.installation import PROGRAMS, Installation
    from cloister.runtime.linux import may_fix_addresses

    if not any(map(shutil.which, PROGRAMS)):
        meaning = "is not installed; it would start enclaves on SGX hardware"
        return Finding("Gramine", State.MISSING, meaning, needed=False)
    try:
        installation = Installation.here()
        title = installation.title
        runtime = installation.runtime()
    except CloisterError as error:
        return Finding("Gramine", State.MISSING, error.message, error.hint, needed=False)
    lacking = [program for program in PROGRAMS if shutil.which(program) is None]
    if not installation.libpal_path.is_file():
        lacking.append(str(installation.libpal_path))
    if not runtime.can_provision:
        lacking.append("its secret provisioning library")
    where = f"{title} in {installation.directory}"
    if lacking:
        return Finding(
            "Gramine", State.MISSING, f"{where}, without {', '.join(lacking)}", needed=False
        )
    if not may_fix_addresses():
        return Finding(
            "Gramine", State.MISSING, f"{where}; gramine-direct does not start: personality(2) is"
            " forbidden here", "in a container: --security-opt seccomp=unconfined", needed=False,
        )  # fmt: skip
    return Finding("Gramine", State.OK, where, needed=False)


def _pytorch() -> Finding:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return Finding("PyTorch", State.OK, version("torch"), needed=False)
    except PackageNotFoundError:
        return Finding(
            "PyTorch", State.MISSING, "is not in this Python; only the examples need it",
            f"{sys.executable} -m pip install torch", needed=False,
        )  # fmt: skip


def tiny_run() -> None:
    """Run ``true`` in direct mode, with the whole machine as its tree.

    Raises:
        CloisterError: it did not start, or failed.
    """
    from cloister.runtime.journal import Journal
    from cloister.runtime.launch import run
    from cloister.runtime.watch import native_program

    program = shutil.which("true")
    if program is None:
        raise CloisterError("there is no program called true to try it with")
    complaints: list[str] = []
    description = native_program((program,), Path("/"), {}, os.getuid(), os.getgid())
    code = run(description, None, Journal(complaints.append))
    if code != 0:
        raise CloisterError(f"it ended with code {code}: {'; '.join(complaints)}")
