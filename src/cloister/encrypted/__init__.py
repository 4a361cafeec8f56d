"""Encrypted files: content that only the holder of the wrap key can read or change."""
