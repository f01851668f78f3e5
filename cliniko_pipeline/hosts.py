"""The rule by which a host is this machine itself."""

import ipaddress


def is_loopback(host: str) -> bool:
    """Return whether a host name or address is this machine, without resolving it.

    Names under `localhost` are not: some resolvers send them to other machines.
    """
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
