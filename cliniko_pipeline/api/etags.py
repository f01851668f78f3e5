"""ETags of responses, and their comparison with the header If-None-Match."""

import hashlib


def etag(body: bytes) -> str:
    """Return the strong ETag of a body."""
    return f'"{hashlib.sha256(body).hexdigest()[:32]}"'


def etag_matches(current: str, if_none_match: str) -> bool:
    """Return whether the header lists the current ETag. A proxy may have turned this ETag into a weak one."""
    return current in {sent.strip().removeprefix("W/") for sent in if_none_match.split(",")}
