"""Intel TDX as data: what a virtual machine's registers say about the programs that ran in it."""
