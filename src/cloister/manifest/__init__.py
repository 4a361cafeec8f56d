"""Manifests: from text to a validated model, and from a template to a signed enclave.

- ``template``: Jinja rendering with the globals of Graphene and Gramine
- ``model``: the validated model, in the shape of Gramine's dialect
- ``dialect``: Graphene's keys turned into Gramine's
- ``trusted``: expansion and hashing of trusted files
- ``index``: digests of trusted files by chunk, beside the signed manifest
- ``build``: from a template to a signed enclave, and loading one
"""
