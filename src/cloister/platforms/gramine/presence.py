"""Whether there is SGX and Gramine here, and an application's files for it; cheap to ask."""

from __future__ import annotations

from pathlib import Path

from cloister.errors import InputError
from cloister.manifest.signed import beside

DEVICE = Path("/dev/sgx_enclave")
APP_SUFFIX = ".gramine"
"""What is put behind the name of an application for Gramine's files."""
_SUFFIXES = (".manifest", ".sig", ".manifest.sgx")


def sgx_is_here() -> bool:
    """Tell whether this machine has SGX and a Gramine that would use it."""
    if not DEVICE.exists():
        return False
    import shutil  # takes long to load, and most starts do not come here

    return shutil.which("gramine-sgx") is not None


def forget(app: Path) -> None:
    """Remove what an earlier build wrote for Gramine, so that no run takes it for this one."""
    for suffix in _SUFFIXES:
        beside(beside(app, APP_SUFFIX), suffix).unlink(missing_ok=True)


def signed_files(app: Path) -> tuple[Path, Path]:
    """Return the manifest and the SIGSTRUCT that a build for Gramine wrote.

    Raises:
        InputError: one is missing.
    """
    gramine_app = beside(app, APP_SUFFIX)
    manifest, signature = beside(gramine_app, ".manifest.sgx"), beside(gramine_app, ".sig")
    for path in (manifest, signature):
        if not path.is_file():
            raise InputError(
                f"{path}: does not exist; {app} was not built for Gramine",
                hint=f"cloister build --platform gramine {app.name}.manifest.template, which says"
                " so if Gramine cannot run it; --platform simulated runs it without protection",
            )
    return manifest, signature
