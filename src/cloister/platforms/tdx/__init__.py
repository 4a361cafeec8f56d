"""TDX virtual machines: the machine is the outer wall of an enclave, our runtime the inner one."""
