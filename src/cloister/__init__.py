"""Confidential machine learning that people can really use.

The rooms of this package, in the order in which a run passes through them:

- ``encrypted``: files that only the owner of a wrap key can read
- ``manifest``: what a program may see, from text to a validated, signed model
- ``sgx``: the architecture as data: measurement, SIGSTRUCT, report, quote
- ``platforms``: where an enclave runs, and who vouches for it
- ``fuse`` and ``runtime``: the file tree and the process that an application sees
- ``attestation``, ``ratls``, ``provision``: verify an enclave, then release a key to it
- ``cli`` and ``graphene``: the command lines
"""

__version__ = "0.1.0"
