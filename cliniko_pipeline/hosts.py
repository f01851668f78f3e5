"""The rule that decides whether a host is this machine."""

import ipaddress


def is_loopback(host: str) -> bool:
    """Return whether a host name or address is this machine, without resolving it.

    Names that end with `.localhost` are not accepted, because some resolvers give them the address of another machine.
    """
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
