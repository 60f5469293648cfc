"""What identifies data, in 16 hexadecimal digits."""

import hashlib


def fingerprint_of(*parts: str) -> str:
    """Changes when a part or the order of parts does."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part.encode() + b"\0")
    return digest.hexdigest()[:16]
