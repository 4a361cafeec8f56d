"""What Gramine prints, and what we say instead, with a hint.

The texts are those of Gramine 1.6 to 1.9, without what stands before them: ``error: ``, before it
``[P1:T1:name] `` where a library OS runs, and before that ``(file.c:1:function) `` where
``loader.log_level`` is ``debug`` or more. Nor has the table the ``PAL failed `` that the loader
puts before what it could not do.
"""

from __future__ import annotations

from typing import NamedTuple


class Message(NamedTuple):
    """One row of the table.

    Attributes:
        theirs: matches the whole text of a line of Gramine's.
        ours: one line; ``{0}`` is the first group. None drops the line.
        hint: what to do.
        fatal: whether the program did not start.
        general: whether it says no more than a fatal line before it.
    """

    theirs: str
    ours: str | None
    hint: str | None = None
    fatal: bool = False
    general: bool = False


_BUILD = "cloister build, where the files are as they should be"
_VERIFY = "cloister verify names the file, and tells which it is"
_TRUST = "add it to sgx.trusted_files, or to fs.mounts as encrypted, and build again"
_DRIVER = "cloister doctor tells whether SGX is on, its driver loaded, and this user may use it"
_REBUILD = "build again on this machine: cloister build --platform gramine APP.manifest.template"
_AESMD = "sudo systemctl start aesmd; cloister doctor tells whether it runs"

TABLE = (
    # --- files -------------------------------------------------------------------------------
    Message(
        r"Disallowing access to file '([^/]*\.so(?:\.[\d.]+)?)'; "
        r"file is not (?:trusted or )?allowed\.",
        "passed over: a library {0} in a directory where it is neither trusted nor allowed",
        "harmless where the program goes on: its linker looks in several directories, and finds it"
        f" in another one; else {_TRUST}",
    ),
    Message(
        r"Disallowing access to file '([^/]*)'; file is not (?:trusted or )?allowed\.",
        "denied: file {0} is neither trusted nor allowed (Gramine does not say in which directory)",
        f"{_TRUST}; --platform simulated tells its whole path",
    ),
    Message(
        r"Disallowing access to file '(.*)'; file is not (?:trusted or )?allowed\.",
        "denied: file {0} is neither trusted nor allowed",
        _TRUST,
    ),
    Message(
        r"Disallowing creating file '.*/__pycache__/[^/]*'; file is not trusted or allowed\.",
        "denied: keeping compiled Python modules beside their sources, which are trusted",
        'harmless; loader.env.PYTHONDONTWRITEBYTECODE = "1" has Python not try',
    ),
    Message(
        r"Disallowing creating file '(.*)'; file is not trusted or allowed\.",
        "denied: creating {0}, which is not in an allowed or encrypted directory",
        "mount the directory as encrypted, or add it to sgx.allowed_files (then the host sees it)",
    ),
    Message(
        r"Disallowing (?:(?:create/)?write/append to|creating) a trusted file '(.*)'",
        "denied: writing trusted file {0}",
        "trusted files never change; write into an encrypted mount",
    ),
    Message(
        r"Hash of trusted file '(.*)' does not match with the reference hash in manifest",
        "tampered: trusted file {0} is not the one that was signed",
        f"if you changed it: {_BUILD}; if not, the host did",
    ),
    Message(
        r"Accessing file '(.*)' is denied: incorrect hash of file chunk at .*",
        "tampered: trusted file {0} is not the one that was signed",
        f"if you changed it: {_BUILD}; if not, the host did",
    ),
    Message(
        r"Allowing (?:access to|creating) unknown file '(.*)' due to file_check_policy.*",
        "let through, without any protection: file {0} (sgx.file_check_policy)",
    ),
    Message(
        r'Mounting "?(?:file|dev|dir):(.*?)"? \((?:chroot|encrypted)\) under .*? failed: '
        r"Operation not permitted \(EPERM\)",
        "tampered: trusted file {0} is not the one that was signed",
        f"if you changed it: {_BUILD}; if not, the host did",
        fatal=True,
    ),
    Message(
        r'Mounting "?(?:file|dev|dir):(.*?)"? \((?:chroot|encrypted)\) under (.*?) failed: (.*)',
        "mount of {0} at {1} failed: {2}",
        "it has to exist on this machine, as it did where the enclave was built",
        fatal=True,
    ),
    Message(r"Failed to look up mount root .*", None),  # the next line says more
    Message(
        r"Mounting (.*) may expose unsanitized, unsafe files to unsuspecting application\..*",
        "{0} is the host's: what the program reads there may be a lie",
    ),
    Message(
        r"trying to access '(.*)' which is a host-level FIFO.*",
        "denied: {0} is a named pipe of the host",
        "only pipes that the program itself makes work",
    ),
    Message(
        r"(?:encrypted_file_internal_open: )?key '(.*)' is not set",
        "key {0} is not set: its encrypted files do not open",
        "a key server releases it; under gramine-direct: --insecure-key NAME=FILE",
    ),
    Message(r"lib_AESGCM\w+ failed: .*|EOF", None),  # the next line says more
    Message(
        r"(?:encrypted_file_internal_open: )?pf_open failed: (?:Callback failed|MAC mismatch)",
        "an encrypted file does not open: encrypted with another key, or empty, cut off or damaged",
        _VERIFY,
    ),
    Message(
        r"(?:encrypted_file_internal_open: )?pf_open failed: Invalid path",
        "an encrypted file does not open: it was moved or renamed outside of the program",
        f"give it its old name back; {_VERIFY}",
    ),
    Message(
        r"(?:encrypted_file_internal_open: )?pf_open failed: "
        r"(?:Invalid header|Invalid version|File is corrupted)",
        "an encrypted file does not open: not encrypted, or cut off or damaged",
        _VERIFY,
    ),
    Message(
        r"(?:encrypted_file_internal_open: )?pf_open failed: (.*)",
        "an encrypted file does not open: {0}",
        _VERIFY,
    ),
    Message(
        r"(?:\w+: )?pf_(read|write|close|flush|set_size|rename|get_size) failed: (.*)",
        "{0} of an encrypted file failed: {1}",
        _VERIFY,
    ),
    Message(
        r"(?:\w+: )?PalStream(?:Read|Write|SetLength|Flush|ChangeName) failed: (.*)",
        "this machine refused an operation on an encrypted file: {0}",
        "the file and its directory must be writable, and the disk not full",
    ),
    Message(
        r"(?:encrypted_file_internal_open: )?PalStreamOpen failed: (.*)",
        "an encrypted file does not open on this machine: {0}",
        "Gramine opens encrypted files for writing too, even to read them: the file and its file"
        " system must be writable",
    ),
    # --- start -------------------------------------------------------------------------------
    Message(
        r"libos_init\(\) failed in init_exec_handle: Permission denied \(EACCES\)",
        "the program, or the interpreter after its #!, is not trusted, or not executable for its"
        " owner",
        "name it in sgx.trusted_files; chmod u+x",
        fatal=True,
    ),
    Message(
        r"libos_init\(\) failed in init_exec_handle: No such file or directory \(ENOENT\)",
        "libos.entrypoint, or the interpreter after its #!, does not exist among the mounts",
        "cloister manifest check APP.manifest.template",
        fatal=True,
    ),
    Message(
        r"libos_init\(\) failed in init_exec_handle: Exec format error \(ENOEXEC\)",
        "libos.entrypoint is no program of this machine, nor a script that begins with #!",
        fatal=True,
    ),
    Message(
        r"Invalid 'fs\.start_dir' in manifest\.",
        "fs.start_dir is not there",
        "it has to be a directory of a mount; build again",
        fatal=True,
    ),
    Message(
        r"libos_init\(\) failed in init_mount: (.*)",
        "a mount failed: {0}",
        "the line before says which",
        fatal=True,
        general=True,
    ),
    Message(
        r"libos_init\(\) failed in (.*)", "Gramine did not start: {0}", fatal=True, general=True
    ),
    Message(
        r"Looking up mountpoint (.*) failed: Operation not permitted \(EPERM\)",
        "tampered: trusted file {0} is not the one that was signed",
        f"if you changed it: {_BUILD}; if not, the host did",
        fatal=True,
    ),
    Message(
        r"argv handling wasn't configured in the manifest, but cmdline arguments were specified\.",
        "this program takes no arguments: its manifest says nothing of them",
        "set loader.argv, or loader.insecure__use_cmdline_argv = true, and build again",
        fatal=True,
    ),
    Message(
        r"Discarding cmdline arguments \(\S* ?(.*?)(?: \[\.\.\.\])?\) because (\S+) was specified"
        r" in the manifest\.",
        "command-line arguments are dropped, {1} stands: {0} and what follows",
    ),
    Message(
        r"Invalid trusted file in manifest at index (\d+) \(no 'sha256' key\)",
        "sgx.trusted_files[{0}] has no hash",
        "cloister build makes them",
        fatal=True,
    ),
    Message(
        r"Wrong manifest configuration - cannot use loader\.insecure__use_host_env and .*",
        "loader.insecure__use_host_env and loader.env_src_file exclude each other",
        fatal=True,
    ),
    Message(
        r"Cannot parse '(.*)'.*",
        "{0} in the manifest is not what Gramine expects there",
        "build again",
        fatal=True,
    ),
    Message(
        r"setting personality failed.*",
        "gramine-direct may not switch off address space randomisation here",
        "in a container: docker run --security-opt seccomp=unconfined, or a profile that permits"
        " personality(2)",
        fatal=True,
    ),
    # --- SGX ---------------------------------------------------------------------------------
    Message(
        r"Gramine is starting\. Parsing TOML manifest file, this may take some time\.\.\.", None
    ),
    Message(
        r"(?:Cannot open|Could not open|Failed to open)(?: device)? (/dev/sgx[\w/]*).*",
        "{0} does not open: no enclave starts",
        _DRIVER,
        fatal=True,
    ),
    Message(
        r"Cannot open SGX driver device\..*",
        "there is no SGX device: no enclave starts",
        _DRIVER,
        fatal=True,
    ),
    Message(
        r"EDMM feature was requested .*",
        "this machine has no EDMM, which sgx.edmm_enable = true asks for",
        "set it to false and build again",
        fatal=True,
    ),
    Message(
        r"Too large 'sgx\.max_threads', maximum allowed is (\d+)",
        "sgx.max_threads is larger than {0}, the most that Gramine has room for",
        "lower it and build again",
        fatal=True,
    ),
    Message(
        r"Enclave creation IOCTL failed: (.*)",
        "the SGX driver makes no such enclave: {0}",
        f"is sgx.enclave_size larger than this processor permits? {_DRIVER}",
        fatal=True,
    ),
    Message(
        r"Unable to parse host's /etc/resolv\.conf",
        "this machine's /etc/resolv.conf is not understood, and the program looks up names",
        "name the key server by its address, or simplify the file",
        fatal=True,
    ),
    Message(
        r"load_enclave\(\) failed with error: (.*)",
        "the enclave was not loaded: {0}",
        f"if nothing else is said before: is /dev mounted noexec? {_DRIVER}",
        fatal=True,
    ),
    Message(
        r"Enclave size not a power of two \(an SGX-imposed requirement\)",
        "sgx.enclave_size is not a power of two",
        'write "4G"',
        fatal=True,
    ),
    Message(
        r"(?i:cannot connect to aesm[_ ]service).*",
        "the quoting service aesmd does not answer: without it there is no attestation",
        _AESMD,
    ),
    Message(r"Please check its status! .*", None),
    Message(
        r"AESM service returned error (\d+).*",
        "the quoting service aesmd answers with error {0}: without it there is no attestation",
        "its log says more: sudo journalctl -u aesmd; is the PCCS reachable that it asks?",
    ),
    Message(
        r"Initializing enclave failed.*",
        "the processor does not start this enclave",
        "signed for another Gramine, or changed since? cloister build --platform gramine; "
        + _DRIVER,
        fatal=True,
    ),
    Message(
        r"No 'loader\.entrypoint.*' is specified in the manifest"
        r"|Hash of entrypoint does not match with the reference hash in manifest"
        r"|Unable to load loader\.entrypoint.*",
        "this Gramine is not the one for which the enclave was built",
        _REBUILD,
        fatal=True,
    ),
    # --- key release --------------------------------------------------------------------------
    Message(
        r"(?:.*: )?Secret Provisioning could not connect to any of the servers specified in "
        r"SECRET_PROVISION_SERVERS; last mbedTLS error was (\S+?)\.?",
        "no key server of SECRET_PROVISION_SERVERS answers (mbedTLS error {0})",
        "start it with `cloister serve`, or name another where the enclave is built",
    ),
    Message(
        r"(?:.*: )?Secret Provisioning could not find envvar SECRET_PROVISION_CA_CHAIN_PATH.*",
        "SECRET_PROVISION_CA_CHAIN_PATH is not set: which key server is to be believed?",
        "set loader.env.SECRET_PROVISION_CA_CHAIN_PATH",
    ),
    Message(
        r"(?:.*: )?.*failed during read with mbedTLS error -(?:29056|30592).*",
        "the key server refused this enclave",
        "its log says which check failed; APP.gramine.sig has this enclave's own measurement",
    ),
    Message(
        r"(?:.*: )?.*handshake.*mbedTLS error -9984.*",
        "the key server's certificate is not the expected one",
        "check SECRET_PROVISION_CA_CHAIN_PATH, the server's name and its certificate's dates",
    ),
    Message(
        r"(?:.*: )?.*cannot open '/dev/attestation/keys/(.*)'.*",
        "the key server's key is for {0}, which no encrypted mount uses",
        'fs.mounts entries of type "encrypted" with key_name',
    ),
    Message(
        r"(?:.*: )?Provisioned secret is not 16 bytes long.*",
        "what the key server released is not a wrap key of 16 bytes",
        "cloister serve without --hex",
    ),
    Message(
        r"(?:.*: )?Secret provisioning failed, terminating the whole process",
        "no key, so the program does not start",
        fatal=True,
    ),
    # --- while it runs ------------------------------------------------------------------------
    Message(
        r"Child process \(vmid: (\S+)\) got disconnected",
        "a process of the program was killed from outside (process {0})",
        "had the machine no memory left? sudo dmesg tells",
    ),
    # --- what it cannot do --------------------------------------------------------------------
    Message(
        r"The app tried to create a subprocess, but this is disabled .*",
        "limit: the program may start no other (sys.disallow_subprocesses)",
    ),
    Message(
        r"Emulating a raw (?:syscall instruction|system/supervisor call)\..*",
        "slow: the program makes system calls without the C library",
    ),
    Message(
        r"The app tried to use flock, but it's turned off "
        r"\(sys\.experimental__enable_flock = false\)",
        "denied: flock, which Gramine has only as an experiment",
        "sys.experimental__enable_flock = true, and build again",
    ),
    Message(
        r"Unsupported system call .*|Ignoring FUTEX_CLOCK_REALTIME flag"
        r"|newfstatat: ignoring AT_NO_AUTOMOUNT\."
        r"|Per-process and per-thread CPU-time clocks .*|unsupported socket domain \d+"
        r"|mincore emulation .*|Gramine does not support MS_INVALIDATE.*"
        r"|Non-private futexes are not supported, .*"
        r"|vfork was called by the application, implemented as an alias to fork in Gramine",
        None,
    ),
    # --- the wrapper --------------------------------------------------------------------------
    Message(
        r"Invalid application path specified \((.*) does not exist\)\.",
        "{0} does not exist",
        "cloister build --platform gramine APP.manifest.template",
        fatal=True,
    ),
    Message(r"The path should point to application configuration files, so that they can be", None),
    Message(r"found after appending corresponding extensions\.", None),
)
"""Gramine's words and ours; the first row that matches counts."""

PAL_FAILED = (
    (
        "PAL failed at parsing the manifest: ",
        Message(
            "(.*)",
            "Gramine does not read the manifest: {0}",
            "build again; gramine-manifest-check APP.gramine.manifest says more",
            fatal=True,
        ),
    ),
    (
        "PAL failed ",
        Message(
            "(.*)",
            "Gramine did not start: {0}",
            "cloister doctor looks for what it needs here",
            fatal=True,
        ),
    ),
)
"""What the loader puts before what it could not do, and what is told where no row knows that."""
