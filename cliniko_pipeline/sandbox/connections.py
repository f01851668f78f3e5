"""Functions for the sandbox's connections: credentials, addresses, and abrupt ends."""

import base64
import binascii
import socket
import struct
from ipaddress import ip_address

from aiohttp import web


def basic_user(authorization: str) -> str | None:
    """Return the user name of HTTP Basic credentials if the password is empty, else None."""
    scheme, _, encoded = authorization.partition(" ")
    if scheme.lower() != "basic":
        return None
    try:
        user, separator, password = base64.b64decode(encoded, validate=True).decode("utf-8").partition(":")
    except (binascii.Error, UnicodeDecodeError):
        return None
    return user if separator and not password else None


def authority(listening: socket.socket) -> str:
    """Return `host:port` of a listening socket."""
    host, port = listening.getsockname()[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def is_loopback(remote: str | None) -> bool:
    """Return whether a peer address is this machine."""
    try:
        return ip_address(remote or "").is_loopback
    except ValueError:
        return False


def close(request: web.BaseRequest) -> None:
    """Close the connection (FIN)."""
    if request.transport is not None:
        request.transport.close()


def reset(request: web.BaseRequest) -> None:
    """Reset the connection (RST)."""
    if request.transport is None:
        return
    connection: socket.socket | None = request.transport.get_extra_info("socket")
    if connection is not None:
        # With a linger time of zero, closing sends RST instead of FIN.
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    request.transport.abort()
