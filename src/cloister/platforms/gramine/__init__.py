"""Programs under an installed Gramine: in SGX enclaves, or (``gramine-direct``) without any."""
