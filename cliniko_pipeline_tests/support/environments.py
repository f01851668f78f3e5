"""The environment variables of a pipeline under test."""

import socket
from pathlib import Path

from cryptography.fernet import Fernet
from sqlalchemy.engine import URL

YEARS_IN_MINUTES = 50_000_000


def environment(database_url: URL, home: Path) -> dict[str, str]:
    """Return variables for the test's database and home, with a new key and a free port for a sandbox."""
    return {
        "DATABASE_URL": database_url.set(drivername="postgresql").render_as_string(hide_password=False),
        "CREDENTIALS_ENCRYPTION_KEY": Fernet.generate_key().decode(),
        "CLINIKO_REQUESTS_PER_MINUTE": "100000",
        "CLINIKO_PIPELINE_HOME": str(home),
        "CLINIKO_ALLOWED_HOSTS": f"127.0.0.1:{free_port()}",
        # The clock of a sandbox may differ from this machine's clock by years.
        "CLINIKO_MAX_CLOCK_SKEW_MINUTES": str(YEARS_IN_MINUTES),
    }


def free_port() -> int:
    """Return a port for a server that is started later."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
