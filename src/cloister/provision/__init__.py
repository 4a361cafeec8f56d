"""Key release: an enclave proves what it is and receives its secret (Secret Provisioning)."""
