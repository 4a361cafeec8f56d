"""The enclave's end, as a process of its own: start an enclave, ask for the secret, print it.

Arguments, as one JSON object: platform (directory), manifest (text), data (directory of the
signing fixture), environment (variables), fields (SIGSTRUCT fields to change).
"""

import json
import sys
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from cloister.errors import CloisterError
from cloister.platforms.simulated import SimulatedPlatform
from cloister.provision.client import ProvisioningRequest, fetch_secret
from cloister.sgx.measurement import measure
from cloister.sgx.sigstruct import Sigstruct

arguments = json.loads(sys.argv[1])
data = Path(arguments["data"])
image = (data / "pal.so").read_bytes()
key = load_pem_private_key((data / "key.pem").read_bytes(), password=None)
assert isinstance(key, RSAPrivateKey)
manifest = arguments["manifest"].encode()
measured = measure(manifest, image, enclave_size=1 << 24, max_threads=1, edmm=True).mrenclave
fields = {
    "flags": 4,
    "xfrm": 3,
    "flags_mask": 2**64 - 1,
    "xfrm_mask": 0xFFFF_FFFF_FFF9_FF1B,
    "misc_select": 0,
    "misc_mask": 2**32 - 1,
    "isv_prod_id": 7,
    "isv_svn": 3,
    "date": 0x20260102,
} | arguments["fields"]
modulus = key.public_key().public_numbers().n
sigstruct = Sigstruct(mr_enclave=measured, modulus=modulus, **fields).sign(key).pack()
enclave = SimulatedPlatform(Path(arguments["platform"])).start(
    manifest=manifest,
    sigstruct=sigstruct,
    image=image,
    enclave_size=1 << 24,
    max_threads=1,
    edmm=True,
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
