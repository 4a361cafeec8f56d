"""What signers print of an enclave, in the words that users of Gramine and Graphene know."""

from __future__ import annotations

from typing import Any

from cloister.manifest.prepare import Prepared
from cloister.sgx.sigstruct import Sigstruct, decode_date

_ATTESTATION = {"none": "None", "dcap": "DCAP/ECDSA"}


def describe_gramine(prepared: Prepared) -> list[str]:
    """Return the lines that Gramine's signer prints."""
    sgx = prepared.manifest.sgx
    return [
        "Attributes (required for enclave measurement):",
        f"    size:        {sgx.enclave_size:#x}",
        f"    edmm:        {sgx.edmm_enable}",
        f"    max_threads: {sgx.max_threads}",
        "SGX remote attestation:",
        f"    {_ATTESTATION[sgx.remote_attestation]}",
        *_layout(prepared),
    ]


def describe_graphene(prepared: Prepared, sigstruct: Sigstruct) -> list[str]:
    """Return the lines that Graphene's signer prints."""
    sgx = prepared.manifest.sgx
    attestation = []
    if sgx.remote_attestation != "none":
        attestation = ["SGX remote attestation:", f"    {_ATTESTATION[sgx.remote_attestation]}"]
    return [
        "Attributes:",
        f"    size:        {sgx.enclave_size:#x}",
        f"    thread_num:  {sgx.max_threads}",
        f"    isv_prod_id: {sigstruct.isv_prod_id}",
        f"    isv_svn:     {sigstruct.isv_svn}",
        f"    attr.flags:  {sigstruct.flags:#x}",
        f"    attr.xfrm:   {sigstruct.xfrm:#x}",
        f"    misc_select: {sigstruct.misc_select:#x}",
        f"    date:        {decode_date(sigstruct.date)}",
        *attestation,
        *_layout(prepared),
    ]


def _layout(prepared: Prepared) -> list[str]:
    return [
        "Memory:",
        *(f"    {area}" for area in prepared.measurement.areas),
        "Measurement:",
        f"    {prepared.measurement.mrenclave.hex()}",
    ]


def sigstruct_facts(found: Sigstruct) -> dict[str, Any]:
    """Return what a SIGSTRUCT says, by the names that Gramine's viewer uses."""
    return {
        "mr_signer": found.mr_signer.hex(),
        "mr_enclave": found.mr_enclave.hex(),
        "isv_prod_id": found.isv_prod_id,
        "isv_svn": found.isv_svn,
        "attribute_flags": hex(found.flags),
        "attribute_xfrms": hex(found.xfrm),
        "misc_select": hex(found.misc_select),
        "attribute_flags_mask": hex(found.flags_mask),
        "attribute_xfrm_mask": hex(found.xfrm_mask),
        "misc_mask": hex(found.misc_mask),
        "date": decode_date(found.date),
        "debug_enclave": found.debug,
    }
