"""The Linux FUSE kernel protocol, spoken directly over ``/dev/fuse``.

``protocol`` is the message tables, ``messages`` packs and unpacks them, ``filesystem`` is what a
file system has to answer, ``server`` the one serving loop. Nothing here knows of enclaves,
manifests or encryption, and nothing outside the standard library is used: no libfuse, no setuid
helper.
"""
