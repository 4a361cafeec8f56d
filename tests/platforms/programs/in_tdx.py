"""Inside of an imitated TDX virtual machine: start programs, make quotes, tell what happened.

Arguments, as one JSON object: directory, fault, manifests (texts, started in order), report_data
(hex), extend (whether other software extends the register first), fields (of SIGSTRUCT), changed
(appended to the manifest after signing), certificate (whether to make one), seal (whether to ask
for a sealing key), busy (how often the driver says that it is), left (names of requests that others
left, with their age in seconds), and later_fault (what goes wrong after the first start). Prints
one JSON object.
"""

from __future__ import annotations

import datetime
import json
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from cloister.errors import CloisterError
from cloister.platforms.base import SealingPolicy
from cloister.platforms.tdx.platform import TdxEnclave, TdxPlatform
from cloister.platforms.tdx.programs import Programs
from cloister.platforms.tdx.register import FileRegister
from cloister.platforms.tdx.reports import Reports
from cloister.ratls.certificate import create_identity
from signing import IMAGE, PARAMETERS, signed
from tdx_kernel import TdxKernel, mount
from worlds import World

arguments: dict[str, Any] = json.loads(sys.argv[1])
directory = Path(arguments["directory"])
place = directory / "kernel"
place.mkdir(exist_ok=True)
now = datetime.datetime.fromisoformat(arguments["now"])
kernel = TdxKernel(
    World(directory / "device", now), arguments.get("fault", ""), arguments.get("busy", 0)
)
answer: dict[str, Any] = {}
slept: list[float] = []


def start(platform: TdxPlatform, manifest: str) -> TdxEnclave:
    sigstruct = signed(manifest.encode(), **arguments.get("fields", {}))
    return platform.start(
        manifest=manifest.encode() + arguments.get("changed", "").encode(),
        sigstruct=sigstruct.pack(),
        image=IMAGE,
        **PARAMETERS,
    )


def main() -> None:
    mount(kernel, place)
    register = FileRegister(place / "rtmr3:sha384")
    if arguments.get("extend"):
        register.extend(bytes(48))
    for name, age in arguments.get("left", {}).items():
        kernel.add(name.encode(), time.time() - age)
    programs = Programs(register, directory / "run")
    platform = TdxPlatform(Reports(place / "report", slept.append), programs)
    enclave = [start(platform, manifest) for manifest in arguments["manifests"]][-1]
    if "later_fault" in arguments:
        kernel.fault = arguments["later_fault"]
        try:
            start(platform, "another")
        except CloisterError as error:
            answer["later_error"] = [type(error).__name__, error.message, error.hint]
    answer["mrenclave"] = enclave.mrenclave.hex()
    if arguments.get("seal"):
        enclave.sealing_key(SealingPolicy.MRENCLAVE)
    answer["event_log"] = enclave.event_log.hex()
    if arguments.get("certificate"):
        identity = create_identity(enclave.quote, event_log=enclave.event_log)
        answer["certificate"] = identity.der.hex()
    else:
        answer["quote"] = enclave.quote(bytes.fromhex(arguments["report_data"])).hex()


try:
    main()
except CloisterError as error:
    answer["error"] = [type(error).__name__, error.message, error.hint]
answer["slept"] = sum(slept)
answer["requests_left"] = [name.decode() for name in kernel.names]
answer["register"] = kernel.register.hex()
print(json.dumps(answer))
