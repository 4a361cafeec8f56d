"""Manifests: from text to a validated model, and from a template to a signed enclave.

Text to model: ``template`` (Jinja), ``parse`` (errors with file, line and key), ``dialect``
(Graphene's keys), ``model``. What is trusted: ``python_environment``, ``libraries``, ``tree``,
``trusted`` (expansion), ``hashing``, ``cache``, ``digests``, ``index``. Signing: ``prepare``,
``gramine_format``, ``build``, ``sign``, ``signing_key``, ``signed`` (loading the result). For
people: ``check``, ``explain``, ``effects``, ``convert``, ``compare``, ``describe``, ``propose``.
"""
