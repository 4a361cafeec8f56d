"""What an application sees, and the processes that show it.

- ``policy``: which files a program may touch (pure)
- ``nodes``: what every file can be asked; ``host``, ``trusted``, ``encrypted``, ``attestation``:
  the kinds of files; ``scene`` and ``place``: what those of the host share
- ``tree``: the mount tree of a manifest, built from those kinds; ``keyring``: its wrap keys
- ``view``: the tree as a FUSE file system
- ``environment``: arguments and environment (pure)
- ``linux``, ``seccomp``, ``forks``, ``sandbox``: system calls, their filter, the application's
  processes; ``processors``: who works on which, and none asleep while it waits
- ``program``, ``load``, ``launch``: from an application's name to its exit code; ``attester``: the
  process that holds the enclave meanwhile; ``journal``: what is reported
"""
