"""One run of a program, in order: fork, meet the enclave, serve, get the key, start, report.

The order matters. The sandbox is forked before any key is in memory, the enclave has started before
anything is served or a key is asked for, and the program starts when everything it needs is in
place. What the enclave, in a process of its own, spends on key servers is used to mount the tree
and to fetch ahead.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import posixpath
import signal
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from cloister.errors import InputError, SandboxError, UnsupportedByPlatformError
from cloister.files import cache_home
from cloister.fuse.passthrough import announce
from cloister.fuse.server import Server
from cloister.manifest.uris import file_path
from cloister.platforms.base import Enclave, SealingPolicy
from cloister.provision.variables import SET_KEY, is_asked, without_provisioning
from cloister.runtime.attestation import SEALING_KEYS, attestation_directory
from cloister.runtime.attester import HeldEnclave
from cloister.runtime.environment import arguments, declared, environment
from cloister.runtime.foresight import Record, Steps, Trail, divided
from cloister.runtime.forks import FOR_THE_PROGRAM
from cloister.runtime.journal import Journal, Level
from cloister.runtime.keyring import DEFAULT_KEY, Keyring
from cloister.runtime.limits import limits_of
from cloister.runtime.mounts import build_tree, key_of, uri_node
from cloister.runtime.names import DEFAULT_HOST_NAME, host_name
from cloister.runtime.plan import Plan, Stage
from cloister.runtime.policy import DirectRules, EnclaveRules, PathSet, Rules, WatchedRules
from cloister.runtime.processors import Processors
from cloister.runtime.program import Program
from cloister.runtime.sandbox import Sandbox, harden_this_process
from cloister.runtime.scene import Scene
from cloister.runtime.shelf import shelf_for
from cloister.runtime.tree import read_node
from cloister.runtime.view import View
from cloister.signals import forwarded_signals, heeded, prompt_signals

if TYPE_CHECKING:
    from cloister.manifest.model import Manifest, Mount, RootMount


StartEnclave = Callable[[], HeldEnclave]


def run(program: Program, start_enclave: StartEnclave | None, journal: Journal) -> int:
    """Run a program to its end and return its exit code as a shell would.

    Args:
        program: what is to run.
        start_enclave: waits for the enclave; None is direct mode: no enclave, no checks, no keys
            but those that the manifest itself names.
        journal: where the run reports what it did and what it denied.

    Raises:
        CloisterError: the run did not come to the program's start.
    """
    loader = program.manifest.loader
    journal.set_level(Level[(program.log_level or loader.log_level).upper()])
    if loader.log_file is not None:
        journal.write_to(program.base / loader.log_file)
    with (
        contextlib.closing(Processors()) as processors,
        contextlib.closing(Sandbox(processors, loader.uid, loader.gid)) as sandbox,
    ):
        harden_this_process()
        if program.trusted is not None:
            program.trusted()  # loaded while the enclave starts
        enclave = None if start_enclave is None else start_enclave()
        keys = _keyring(program.manifest, enclave)
        try:
            with prompt_signals():
                return _Run(program, enclave, keys, journal).through(sandbox, processors)
        finally:
            keys.wipe()
            if enclave is not None:
                enclave.close()
            journal.close()


class _Run:
    """One run after the enclave started."""

    def __init__(
        self, program: Program, enclave: HeldEnclave | None, keys: Keyring, journal: Journal
    ) -> None:
        self._program = program
        self._manifest = program.manifest
        self._enclave = enclave
        self._keys = keys
        self._journal = journal
        loader = program.manifest.loader
        protected = program.manifest.sgx.protected_files
        self._scene = Scene(
            _rules(program, journal),
            journal.denied,
            loader.uid,
            loader.gid,
            # As with Graphene, direct mode has no protected files: they are plain there.
            protected=PathSet(file_path(u) for u in protected) if enclave else PathSet(()),
        )
        attestation = attestation_directory(
            enclave,
            keys,
            journal.note,
            remote_attestation=self._manifest.sgx.remote_attestation != "none",
        )
        self._quote = attestation.mounted.get(b"quote")
        self._tree = build_tree(self._manifest, self._scene, keys, program.base, attestation)

    def through(self, sandbox: Sandbox, processors: Processors) -> int:
        """Get the key, start the program, serve its files, return its exit code.

        While key servers are asked, the tree is mounted, and what needs no key is fetched ahead.
        """
        enclave = self._enclave
        asking = enclave is not None and self._ask_for_secrets(enclave)
        secrets: dict[str, str] = {}
        if enclave is not None and asking and self._manifest.loader.argv_src_file:
            secrets, asking = self._take_secrets(enclave), False  # the file may be encrypted
        argv = arguments(self._manifest, self._program.arguments, self._read_uri)
        record = None if enclave is None else _record(enclave, argv)
        trail = None if record is None else Trail(names=not record.foreseen)
        stage = self._stage({} if record is None else record.foreseen, processors)
        # Of a run that is recorded it is to be seen what was read.
        if record is not None and self._journal.recorder is None:
            announced = functools.partial(announce, sandbox.fuse)
            self._scene.shelf = shelf_for(record.reread, announced)
        server = Server(
            sandbox.fuse,
            self._view(trail),
            self._crashed,
            on_request=processors.request,
            passes_through=self._scene.shelf is not None,
        )
        # What is loaded by now stays to the end; the collector need not look at it again.
        gc.freeze()
        sandbox.prepare(stage)
        server.serve_until(sandbox.fileno())
        sandbox.await_ready()
        if enclave is not None and asking:
            if not server.serve_until(enclave.fileno()):
                raise SandboxError("the sandbox died while key servers were asked")
            secrets = self._take_secrets(enclave)
        plan = self._plan(argv, secrets)
        if self._journal.recorder is not None:
            self._journal.recorder.program_starts()
        with forwarded_signals(sandbox.forward, sandbox.has_program):
            sandbox.start(plan)
            server.serve()
            code = sandbox.result(self._journal.limit)
        if code == 128 + signal.SIGSEGV:
            self._journal.fault(self._manifest.sys.stack.size)
        if self._journal.recorder is not None:
            self._journal.recorder.ended(code, sandbox.memory)
        if record is not None and trail is not None:
            trail.move(self._tree.seen)
            record.learn(trail)
        # The tree's ten thousand nodes need not be taken apart when the interpreter ends.
        gc.freeze()
        return code

    def _stage(self, foreseen: Steps, processors: Processors) -> Stage:
        """Return what the sandbox can begin with before the keys are there."""
        extra_names = self._manifest.sys.enable_extra_runtime_domain_names_conf
        now, later = divided(foreseen, self._encrypted_paths())
        return Stage(
            mounts=self._tree.kernel_mounts,
            host_name=host_name() if extra_names else DEFAULT_HOST_NAME,
            foreseen=now,
            foreseen_later=later,
            limits=limits_of(self._manifest, enclave=self._enclave is not None),
            processor=processors.share() if foreseen else None,
        )

    def _encrypted_paths(self) -> list[str]:
        """Return the places of the tree at or below which files are encrypted."""
        fs = self._manifest.fs
        if self._manifest.sgx.protected_files or (fs.root and fs.root.type == "encrypted"):
            return ["/"]
        return [self._inside(mount.path) for mount in fs.mounts if mount.type == "encrypted"]

    def _plan(self, argv: list[str], secrets: Mapping[str, str]) -> Plan:
        """Return what the program is."""
        host = self._program.host_environment
        variables = environment(self._manifest, host, self._read_uri)
        return Plan(
            executable=self._inside(self._manifest.libos.entrypoint),
            arguments=argv,
            environment={**without_provisioning(variables), **secrets},
            directory=self._manifest.fs.start_dir,
            heeded=heeded(FOR_THE_PROGRAM),
        )

    def _view(self, trail: Trail | None) -> View:
        """Return what serves the tree; it counts only where the run is recorded."""
        recorder = self._journal.recorder
        if recorder is None:
            return View(self._tree.root, trail)
        return recorder.view(self._tree.root, trail, self._quote)

    def _ask_for_secrets(self, enclave: HeldEnclave) -> bool:
        """Begin to fetch the secrets that the manifest asks for; tell whether it does."""
        settings = declared(self._manifest, self._program.host_environment)
        if not (is_asked(settings) or self._manifest.cloister.keys):
            return False
        from cloister.provision.request import ProvisioningRequest

        asked = ProvisioningRequest.from_environment(settings, self._read_ca)
        requests = [] if asked is None else [(SET_KEY, asked)]
        for key in self._manifest.cloister.keys:
            if asked is not None and asked.key_name == key.name:
                raise InputError(f"key {key.name}: both {SET_KEY} and cloister.keys ask for it")
            ca = self._read_ca(key.ca)
            request = ProvisioningRequest.for_key(key.name, key.servers, ca)
            requests.append(("cloister.keys", request))
        for where, request in requests:
            self._require_mount(where, request.key_name)
        enclave.ask_for([request for _, request in requests])
        names = {request.key_name for _, request in requests}
        self._keys.awaited = frozenset(name for name in names if name is not None)
        return True

    def _require_mount(self, where: str, name: str | None) -> None:
        if name is not None and name not in self._keys:
            raise InputError(
                f'{where}: no encrypted mount uses a key named "{name}"',
                hint=f'fs.mounts entries of type "encrypted" with key_name = "{name}"',
            )

    def _take_secrets(self, enclave: HeldEnclave) -> dict[str, str]:
        """Wait for the secrets, set the keys, return variables for the program."""
        variables: dict[str, str] = {}
        self._keys.awaited = frozenset()
        for provisioned in enclave.provisioned():
            try:
                if provisioned.key_name is not None and provisioned.key is not None:
                    self._keys.set(provisioned.key_name, provisioned.key)
            finally:
                provisioned.wipe()
            self._journal.released(provisioned)
            variables |= provisioned.environment
        return variables

    def _inside(self, path: str) -> str:
        """Return an absolute path of the tree."""
        return posixpath.normpath(posixpath.join(self._manifest.fs.start_dir, path))

    def _read_inside(self, path: str) -> bytes:
        """Read a file by its path in the tree, with all checks."""
        return self._tree.read(self._inside(path))

    def _read_ca(self, path: str) -> bytes:
        """Read the certificates by which a key server is known."""
        try:
            return self._read_inside(path)
        except OSError as error:
            raise InputError(
                f"{self._inside(path)}: {error.strerror}; without a CA certificate no key server"
                " can be believed",
                hint="this is a path inside the enclave: mount the file there, and list it in"
                " sgx.trusted_files",
            ) from error

    def _read_uri(self, uri: str) -> bytes:
        """Read a file by its URI, with all checks: it may be trusted, allowed or encrypted."""
        return read_node(uri_node(self._manifest, self._scene, self._program.base, uri))

    def _crashed(self, request: str, error: Exception) -> None:
        """Tell of a defect of ours; the program got EIO."""
        self._journal.note(f"internal error in {request}, the program got EIO: {error!r}")
        if self._program.debug:
            traceback.print_exception(error, file=sys.stderr)


def _record(enclave: Enclave, argv: Sequence[str]) -> Record | None:
    """Return what this enclave remembers of runs with these arguments, if it can keep anything."""
    try:
        key = enclave.sealing_key(SealingPolicy.MRENCLAVE)
    except UnsupportedByPlatformError:
        return None
    return Record(cache_home() / "reads", key, argv)


def _keyring(manifest: Manifest, enclave: Enclave | None) -> Keyring:
    """Return the keys that exist by name, with those that need no key server already set."""
    mounts: list[Mount | RootMount] = [*manifest.fs.mounts]
    if manifest.fs.root is not None:
        mounts.append(manifest.fs.root)
    named = {key_of(mount) for mount in mounts if mount.type == "encrypted"}
    if manifest.sgx.protected_files:
        named.add(DEFAULT_KEY)
    fixed = manifest.fs.insecure__keys
    keys = Keyring({*named, *fixed, *(SEALING_KEYS if enclave is not None else ())})
    for name, text in fixed.items():
        keys.set(name, bytes.fromhex(text))
    if enclave is not None:
        _set_sealing_keys(keys, manifest, enclave, named)
    return keys


def _set_sealing_keys(
    keys: Keyring, manifest: Manifest, enclave: Enclave, mounted: set[str]
) -> None:
    """Set the keys that the platform derives; one that it lacks may stay unset if no mount uses it.

    Raises:
        UnsupportedByPlatformError: an encrypted mount uses a key that this platform does not have.
    """
    masks = manifest.sgx.seal_key
    for policy in SealingPolicy:
        name = f"_sgx_{policy.value}"
        try:
            key = enclave.sealing_key(
                policy,
                flags_mask=masks.flags_mask,
                xfrm_mask=masks.xfrm_mask,
                misc_mask=masks.misc_mask,
            )
            keys.set(name, key)
        except UnsupportedByPlatformError:
            if name in mounted:
                raise


def _rules(program: Program, journal: Journal) -> Rules:
    """Return the access rules: the manifest's in an enclave, none in direct mode."""
    rules = _plain_rules(program, journal)
    return WatchedRules(rules, journal.granted) if journal.tells_of_grants else rules


def _plain_rules(program: Program, journal: Journal) -> Rules:
    if program.trusted is None:
        return program.rules or DirectRules()
    sgx = program.manifest.sgx
    trusted = program.trusted()
    logs = sgx.file_check_policy == "allow_all_but_log"
    allowed = [uri.partition(":")[2] for uri in sgx.allowed_files]
    return EnclaveRules(
        trusted.lookup,
        allowed,
        trusted,
        let_through=journal.let_through if logs else None,
        base=str(program.base),
    )
