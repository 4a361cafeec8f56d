"""The enclave's end, as a process of its own: start an enclave, ask for the secret, print it.

Arguments, as one JSON object: platform (directory), manifest (text), environment (variables),
fields (SIGSTRUCT fields to change).
"""

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from cloister.errors import CloisterError
from cloister.platforms.simulated import SimulatedPlatform
from cloister.provision.client import fetch_secret
from cloister.provision.request import ProvisioningRequest
from signing import IMAGE, PARAMETERS, signed

arguments = json.loads(sys.argv[1])
manifest = arguments["manifest"].encode()
sigstruct = signed(manifest, **arguments["fields"]).pack()
enclave = SimulatedPlatform(Path(arguments["platform"])).start(
    manifest=manifest, sigstruct=sigstruct, image=IMAGE, **PARAMETERS
)
request = ProvisioningRequest.from_environment(
    arguments["environment"], lambda path: Path(path).read_bytes()
)
assert request is not None
try:
    provisioned = fetch_secret(enclave, request, timeout=10)
except CloisterError as error:
    print(json.dumps({"error": type(error).__name__, "message": error.message}))
    sys.exit(error.exit_code)
print(
    json.dumps(
        {
            "server": str(provisioned.server),
            "secret": provisioned.secret.hex(),
            "key_name": provisioned.key_name,
            "key": provisioned.key.hex() if provisioned.key else None,
            "environment": provisioned.environment,
        }
    )
)
