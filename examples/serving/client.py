"""Verify the enclave of the service, then send it a photograph.

Usage: client.py URL PHOTOGRAPH, or client.py --ca CA URL PHOTOGRAPH for a run without enclave.

In the current directory are ``service.sig``, which says which enclave is meant, and
``platform.json``, the root of the SIMULATED processor to trust. The photograph does not leave
before the enclave has proved that it holds the key of this very TLS connection.
"""

from __future__ import annotations

import argparse
import datetime
import ssl
import sys
from pathlib import Path

import httpx

from cloister.attestation import SimulatedBundle
from cloister.attestation.policy import MrEnclave
from cloister.attestation.trust import Authenticator, Trust
from cloister.errors import RefusedError
from cloister.ratls.peer import Judge, judging_context
from cloister.ratls.programs import expect
from cloister.sgx.sigstruct import Sigstruct


def main() -> None:
    """Post the photograph, print the answer."""
    parser = argparse.ArgumentParser(description="Send a photograph to the classifier.")
    parser.add_argument("--ca", help="trust servers of this CA instead of the enclave")
    parser.add_argument("url")
    parser.add_argument("photograph", type=Path)
    options = parser.parse_args()
    if options.ca:
        context = ssl.create_default_context(cafile=options.ca)
    else:
        context = judging_context(judge())
    try:
        with httpx.Client(verify=context) as client:
            answer = client.post(options.url, content=options.photograph.read_bytes())
    except RefusedError as error:
        sys.exit(f"client.py: refused, nothing was sent: {error.message}")
    answer.raise_for_status()
    for found in answer.json():
        print(f"{found['name']:<30} {found['percentage']:8.4f} %")


def judge() -> Judge:
    """Accept one enclave, on processors whose root is in ``platform.json``."""
    bundle = SimulatedBundle.from_json(Path("platform.json").read_text(encoding="utf-8"))
    trust = Trust(((bundle.anchor, bundle.collateral),))
    enclave = Sigstruct.unpack(Path("service.sig").read_bytes()).mr_enclave
    clock = lambda: datetime.datetime.now(datetime.timezone.utc)  # noqa: E731
    return expect(MrEnclave(enclave), Authenticator(trust, clock))


if __name__ == "__main__":
    main()
