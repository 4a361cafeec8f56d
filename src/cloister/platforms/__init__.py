"""Where an enclave runs: one small interface, and the platforms behind it."""
