"""A stand-in for an installed Gramine, for tests: ``gramine-direct``, ``gramine-sgx`` and
``gramine-sgx-sign``.

It checks what the real programs check of a manifest and of the files that it names, prints their
lines, and ends with their exit codes. In place of running the program it prints, as JSON, what it
would run; files of encrypted mounts it opens with the key that it was given.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import posixpath
import stat
import sys
from pathlib import Path
from typing import Any, NoReturn

import tomli

KNOWN = {"libos", "loader", "fs", "sys", "sgx"}
REQUIRED = (("fs", "mounts"), ("libos", "entrypoint"), ("loader", "entrypoint"))
NAMES = ("gramine-direct", "gramine-sgx", "gramine-sgx-sign")

# Lines of manifests for it: a secret that a key server releases, and a mount that needs it.
SECRET = """
loader.env.SECRET_PROVISION_CONSTRUCTOR = "1"
loader.env.SECRET_PROVISION_SET_KEY = "default"
loader.env.SECRET_PROVISION_CA_CHAIN_PATH = "/ca.crt"
"""
ENCRYPTED = '{ path = "/data", uri = "file:encrypted", type = "encrypted" }'


def install(prefix: Path, *, version: str = "1.9") -> Path:
    """Install the stand-in below ``prefix``; return the directory of its programs."""
    programs = prefix / "bin"
    libraries = prefix / "lib" / "x86_64-linux-gnu" / "gramine"
    glibc = libraries / "runtime" / "glibc"
    for directory in (programs, glibc, libraries / "direct", libraries / "sgx"):
        directory.mkdir(parents=True)
    image = (Path(__file__).parent / "data" / "signing" / "pal.so").read_bytes()
    (libraries / "libsysdb.so").write_bytes(b"library OS")
    (libraries / "direct" / "libpal.so").write_bytes(image)
    (libraries / "sgx" / "libpal.so").write_bytes(image)
    for name in ("ld-linux-x86-64.so.2", "libc.so.6"):
        (glibc / name).write_bytes(name.encode())
    (libraries / "libsecret_prov_attest.so").write_bytes(b"provisioning")
    (glibc / "libsecret_prov_attest.so").symlink_to(libraries / "libsecret_prov_attest.so")
    for name in NAMES:
        script = programs / name
        script.write_text(
            f"#!/bin/sh\nexec {sys.executable} {Path(__file__).resolve()} {name} {version} "
            f'{libraries} "$@"\n'
        )
        script.chmod(0o755)
    return programs


def stop(line: str, *, code: int = 1) -> NoReturn:
    print(line, file=sys.stderr)
    raise SystemExit(code)


def require_schema(manifest: dict[str, Any], version: str) -> None:
    """What ``gramine-manifest-check`` refuses."""
    for key in manifest.keys() - KNOWN:
        stop(f"error in manifest: extra keys not allowed @ data['{key}']")
    for table, key in REQUIRED:
        if key not in manifest.get(table, {}):
            stop(f"error in manifest: required key not provided @ data['{table}']['{key}']")
    entrypoint = manifest["loader"]["entrypoint"]
    if tuple(map(int, version.split("."))) < (1, 8):
        if not isinstance(entrypoint, str):
            stop("error: No 'loader.entrypoint' is specified in the manifest")
        if entrypoint not in [item["uri"] for item in manifest["sgx"]["trusted_files"]]:
            stop("error: PAL failed DENIED")
    elif "uri" not in entrypoint:
        stop("error in manifest: required key not provided @ data['loader']['entrypoint']['uri']")
    release = tuple(map(int, version.split(".")))
    known_later = {"fds": (1, 8), "debug__mock_syscalls": (1, 8)}
    for key in manifest.get("sys", {}):
        if release < known_later.get(key, release):
            stop(f"error in manifest: extra keys not allowed @ data['sys']['{key}']")
    for mount in manifest["fs"]["mounts"]:
        kind = mount.get("type", "chroot")
        known = {"type", "path", "uri"}
        known |= {"key_name"} if kind == "encrypted" else set()
        known |= {"enable_recovery"} if kind == "encrypted" and release >= (1, 9) else set()
        if mount.keys() - known or "path" not in mount or (kind != "tmpfs" and "uri" not in mount):
            stop(f"error in manifest: wrong mount {mount}")


class Loader:
    def __init__(self, manifest: dict[str, Any], *, sgx: bool) -> None:
        self.manifest = manifest
        self.sgx = sgx
        self.keys = dict.fromkeys(self._named_keys(), b"")
        for name, text in manifest["fs"].get("insecure__keys", {}).items():
            self.keys[name] = bytes.fromhex(text)
        self.env: dict[str, str] = manifest["loader"].get("env", {})
        self.trusted: dict[str, str] = {}
        self.allowed: list[str] = []

    def _named_keys(self) -> list[str]:
        mounts = self.manifest["fs"]["mounts"]
        return [m.get("key_name", "default") for m in mounts if m.get("type") == "encrypted"]

    def start(self, arguments: list[str]) -> None:
        libos = self.manifest["loader"]["entrypoint"]
        if isinstance(libos, str):
            trusted = self.manifest["sgx"]["trusted_files"]
            (libos,) = (item for item in trusted if item["uri"] == libos)
        if not libos["uri"].startswith("file:"):
            stop("error: PAL failed at parsing the manifest: loader.entrypoint.uri")
        content = Path(libos["uri"].removeprefix("file:")).read_bytes()
        if hashlib.sha256(content).hexdigest() != libos.get("sha256"):
            stop("error: PAL failed DENIED")
        argv = self._argv(arguments)
        self._lists()
        self._mounts()
        program = self._entrypoint()
        self._libraries()
        self._provision()
        opened = self._encrypted()
        print(json.dumps({"program": program, "argv": argv, "env": self.env, "opened": opened}))

    def _argv(self, arguments: list[str]) -> list[str]:
        loader = self.manifest["loader"]
        if loader.get("insecure__use_cmdline_argv"):
            return [self.manifest["libos"]["entrypoint"], *arguments]
        if "argv" in loader:
            if arguments:
                print(
                    f"error: Discarding cmdline arguments ({' '.join(arguments)}) because "
                    "loader.argv was specified in the manifest.",
                    file=sys.stderr,
                )
            return list(loader["argv"])
        if arguments:
            stop(
                "error: PAL failed argv handling wasn't configured in the manifest, but cmdline "
                "arguments "
                "were specified."
            )
        return [self.manifest["libos"]["entrypoint"]]

    def _lists(self) -> None:
        sgx = self.manifest.get("sgx", {})
        for number, item in enumerate(sgx.get("trusted_files", [])):
            if "sha256" not in item:
                stop(f"error: Invalid trusted file in manifest at index {number} (no 'sha256' key)")
            self.trusted[posixpath.normpath(item["uri"].removeprefix("file:"))] = item["sha256"]
        for uri in sgx.get("allowed_files", []):
            if not uri.startswith(("file:", "dev:")):
                stop(f"error: Invalid URI [{uri}]: Allowed files must start with 'file:' or 'dev:'")
            self.allowed.append(posixpath.normpath(uri.partition(":")[2]))

    def _mounts(self) -> None:
        for number, mount in enumerate(self.manifest["fs"]["mounts"]):
            if not mount["path"].startswith("/") or mount["path"] == "/":
                stop(f"error: 'fs.mounts[{number}].path' cannot be \"{mount['path']}\".")
            uri = mount.get("uri", "")
            host = Path(uri.removeprefix("file:"))
            if mount.get("type") != "tmpfs" and not host.exists():
                self._not_mounted(mount, "No such file or directory (ENOENT)")
            # A mounted file is looked up, and so verified, when it is mounted.
            if host.is_file() and mount.get("type", "chroot") == "chroot":
                digest = self.trusted.get(posixpath.normpath(uri.removeprefix("file:")))
                if digest and hashlib.sha256(host.read_bytes()).hexdigest() != digest:
                    why = "Operation not permitted (EPERM)"
                    failed = f"Looking up mountpoint {mount['path']} failed: {why}"
                    print(f"[P1:T1:] error: {failed}", file=sys.stderr)
                    stop(f"[P1:T1:] error: libos_init() failed in init_mount: {why}")

    def _not_mounted(self, mount: dict[str, Any], why: str) -> NoReturn:
        kind = mount.get("type", "chroot")
        print(
            f'[P1:T1:] error: Mounting "{mount["uri"]}" ({kind}) under {mount["path"]} failed: '
            f"{why}",
            file=sys.stderr,
        )
        stop(f"[P1:T1:] error: libos_init() failed in init_mount: {why}")

    def host(self, inside: str) -> tuple[str, str] | None:
        """Return the URI path of a file inside, and the type of its mount: the last one counts."""
        for mount in reversed(self.manifest["fs"]["mounts"]):
            path = mount["path"]
            if inside == path or inside.startswith(f"{path}/"):
                if mount.get("type") == "tmpfs":
                    return None
                uri = mount["uri"].removeprefix("file:")
                return posixpath.normpath(uri + inside[len(path) :]), mount.get("type", "chroot")
        return None

    def _read(self, inside: str) -> bytes | None:
        found = self.host(inside)
        if found is None or not Path(found[0]).is_file():
            return None
        path, _ = found
        content = Path(path).read_bytes()
        if any(path == a or path.startswith(f"{a}/") for a in self.allowed):
            return content
        if path not in self.trusted:
            name = posixpath.basename(path)
            self._warn(f"Disallowing access to file '{name}'; file is not allowed.")
            return None
        if hashlib.sha256(content).hexdigest() != self.trusted[path]:
            self._warn(
                f"Hash of trusted file '{path}' does not match with the reference hash in manifest"
            )
            return None
        return content

    def _warn(self, text: str) -> None:
        """Warnings are not told at the usual level."""
        if self.manifest["loader"].get("log_level", "error") not in ("none", "error"):
            print(f"[P1:T1:] warning: {text}", file=sys.stderr)

    def _entrypoint(self) -> str:
        inside = self.manifest["libos"]["entrypoint"]
        found = self.host(inside)
        failed = "[P1:T1:] error: libos_init() failed in init_exec_handle: "
        if found is None or not Path(found[0]).exists():
            stop(f"{failed}No such file or directory (ENOENT)")
        executable = Path(found[0]).stat().st_mode & stat.S_IXUSR
        if not executable or self._read(inside) is None:
            stop(f"{failed}Permission denied (EACCES)")
        return found[0]

    def _libraries(self) -> None:
        path = self.env.get("LD_LIBRARY_PATH", "").split(":")
        preloaded = [name for name in self.env.get("LD_PRELOAD", "").split(":") if name]
        for name in ("ld-linux-x86-64.so.2", "libc.so.6", *preloaded):
            first = next((d for d in path if (self.host(f"{d}/{name}") or [""])[0] and
                          Path((self.host(f"{d}/{name}") or [""])[0]).exists()), None)  # fmt: skip
            if first is None or self._read(f"{first}/{name}") is None:
                stop(f"{name}: cannot open shared object file", code=127)

    def _provision(self) -> None:
        asked = self.env.get("SECRET_PROVISION_CONSTRUCTOR") in ("1", "true", "TRUE")
        if "libsecret_prov_attest.so" not in self.env.get("LD_PRELOAD", "") or not asked:
            return
        if self._read(self.env["SECRET_PROVISION_CA_CHAIN_PATH"]) is None:
            stop("secret_provision_constructor: Secret provisioning failed, terminating the whole "
                 "process")  # fmt: skip
        if not self.sgx:  # there is no quote
            stop("secret_provision_constructor: Secret provisioning failed, terminating the whole "
                 "process")  # fmt: skip
        key = os.environ.get("STANDIN_RELEASES")
        if key is None:
            print(
                "secret_provision_start: Secret Provisioning could not connect to any of the "
                "servers specified in "
                "SECRET_PROVISION_SERVERS; last mbedTLS error was -68",
                file=sys.stderr,
            )
            stop("secret_provision_constructor: Secret provisioning failed, terminating the whole "
                 "process")  # fmt: skip
        self.keys[self.env["SECRET_PROVISION_SET_KEY"]] = bytes.fromhex(key)

    def _encrypted(self) -> dict[str, str]:
        from cloister.encrypted import open as open_encrypted

        opened = {}
        for mount in self.manifest["fs"]["mounts"]:
            key = self.keys.get(mount.get("key_name", "default"), b"")
            if mount.get("type") != "encrypted" or not key:
                continue
            below = mount["uri"].removeprefix("file:")
            for path in sorted(Path(below).iterdir()):
                with open_encrypted(path, key=key) as file:
                    opened[str(path)] = file.read().decode()
        return opened


def sign(arguments: list[str], version: str) -> int:
    from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    from cloister.manifest.parse import parse_manifest
    from cloister.manifest.prepare import measure_manifest
    from signing import signed

    parser = argparse.ArgumentParser()
    for option in ("manifest", "output", "key", "libpal", "sigfile"):
        parser.add_argument(f"--{option}", type=Path, required=True)
    given = parser.parse_args(arguments)
    data = given.manifest.read_bytes()
    require_schema(tomli.loads(data.decode()), version)
    key = load_pem_private_key(given.key.read_bytes(), None)
    if not isinstance(key, RSAPrivateKey) or key.key_size != 3072:
        print("Invalid RSA key", file=sys.stderr)
        return 2
    image = given.libpal.read_bytes()
    if os.environ.get("STANDIN_SIGNER") == "other":
        data += b"\n"
    measured = measure_manifest(data, parse_manifest(data.decode(), "x"), image).mrenclave
    given.output.write_bytes(data)
    given.sigfile.write_bytes(signed(data, mr_enclave=measured).pack())
    return 0


def main(name: str, version: str, libraries: str, *arguments: str) -> int:
    if arguments == ("--version",):
        print(f"Gramine {version} (0123456789abcdef)")
        return 0
    if name == "gramine-sgx-sign":
        return sign(list(arguments), version)
    if not arguments:
        print(f"Usage: {name} [<application>] <args>...")
        return 2
    app, *rest = arguments
    sgx = name == "gramine-sgx"
    suffix = ".manifest.sgx" if sgx else ".manifest"
    manifest = Path(app + suffix)
    if not manifest.exists():
        print(f"Invalid application path specified ({manifest} does not exist).", file=sys.stderr)
        print("The path should point to application configuration files, so that they can be",
              file=sys.stderr)  # fmt: skip
        print("found after appending corresponding extensions.", file=sys.stderr)
        return 2
    text = manifest.read_bytes()
    document = tomli.loads(text.decode())
    require_schema(document, version)
    if sgx:
        from cloister.manifest.parse import parse_manifest
        from cloister.manifest.prepare import measure_manifest
        from cloister.sgx.sigstruct import Sigstruct

        print("Gramine is starting. Parsing TOML manifest file, this may take some time...",
              file=sys.stderr)  # fmt: skip
        image = (Path(libraries) / "sgx" / "libpal.so").read_bytes()
        expected = Sigstruct.unpack(Path(f"{app}.sig").read_bytes()).mr_enclave
        if measure_manifest(text, parse_manifest(text.decode(), "x"), image).mrenclave != expected:
            stop("error: Initializing enclave failed: -22")
    Loader(document, sgx=sgx).start(rest)
    return int(os.environ.get("STANDIN_EXIT", "0"))


if __name__ == "__main__":
    raise SystemExit(main(*sys.argv[1:]))
