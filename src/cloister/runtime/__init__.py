"""What an application sees, and the process that shows it.

- ``policy``: which files a program may touch (pure)
- ``nodes``, ``host``, ``encrypted``, ``attestation``: the kinds of files
- ``tree``: the mount tree of a manifest, built from those kinds
- ``view``: the tree as a FUSE file system
- ``environment``: arguments and environment (pure)
- ``linux``, ``sandbox``: namespaces, mounts, the application's process
- ``launch``: all of it in order
"""
