"""The encryption key file of the embedded database."""

import os
import stat
import tempfile
from base64 import urlsafe_b64encode
from pathlib import Path

from pydantic import SecretStr

from cliniko_pipeline.errors import SettingsError
from cliniko_pipeline.settings.validators import encryption_keys

_MAX_SIZE = 64 * 1024  # bytes


def ensure_keys(path: Path) -> tuple[SecretStr, ...]:
    """Return the keys in the file at `path`; generate a key if there is no file.

    Raises SettingsError if the file cannot be read, is open to other users, or contains no Fernet key.
    """
    try:
        if not path.exists():
            _create(path)
        mode, text = _read(path)
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not text"
        raise SettingsError(
            f"The encryption key file {path} cannot be used ({reason}); repair it, or set CREDENTIALS_ENCRYPTION_KEY."
        ) from None
    if stat.S_IMODE(mode) & 0o077:
        raise SettingsError(
            f"The encryption key file {path} is open to other users (mode {stat.S_IMODE(mode):04o});"
            f" run: chmod 600 {path} (where that has no effect, set CREDENTIALS_ENCRYPTION_KEY instead)."
        )
    try:
        keys = encryption_keys(text)
    except ValueError:
        keys = ()
    if not keys:
        raise SettingsError(
            f"The encryption key file {path} does not hold a Fernet key; restore it from a backup. Where no"
            " credentials are stored yet, delete the file, and a key is generated."
        )
    return keys


def _create(path: Path) -> None:
    """Write a new key to a private draft and link it to `path`.

    link() never replaces a file, and readers only see the complete file. So two processes that start together use the
    same key.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(prefix=".encryption.key.", dir=path.parent)
    draft = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as file:
            # A Fernet key. Importing its module would delay every command.
            file.write(urlsafe_b64encode(os.urandom(32)) + b"\n")
            file.flush()
            os.fsync(file.fileno())
        path.hardlink_to(draft)
    except FileExistsError:
        pass  # Another process was faster, and its key is used.
    finally:
        draft.unlink()


def _read(path: Path) -> tuple[int, str]:
    with path.open("rb") as file:
        return os.fstat(file.fileno()).st_mode, file.read(_MAX_SIZE).decode("ascii")
