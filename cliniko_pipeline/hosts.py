"""Which hosts are this machine itself: one rule for the settings and for the client."""

import ipaddress


def is_loopback(host: str) -> bool:
    """Whether a host name or address is this machine itself, judged by its text alone.

    Names under `localhost` do not count: not every resolver keeps them on this machine.
    """
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
