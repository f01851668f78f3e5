"""The files of the embedded PostgreSQL: data, password, locks and socket."""

import os
import re
import secrets
import shutil
import stat
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from cliniko_pipeline.errors import DatabaseSetupError
from cliniko_pipeline.postgres.server import programs

USER = "cliniko_pipeline"
# Only a folder with such a path can contain the socket. Unix limits socket paths to about 100 bytes, and PostgreSQL and
# libpq would read a path with commas as a list.
_SOCKET_DIRECTORY = re.compile(r"[\w./+-]{1,80}", re.ASCII)
# TMPDIR is not used, because it may differ between processes that must find the same socket.
_TEMPORARY = Path("/tmp")  # noqa: S108 (checked before it is used)


@dataclass(frozen=True)
class Cluster:
    """The files in and around the folder `root`."""

    root: Path

    @property
    def data(self) -> Path:
        """PostgreSQL's data directory."""
        return self.root / "data"

    @property
    def log(self) -> Path:
        """The server's log."""
        return self.data / "server.log"

    @property
    def password_file(self) -> Path:
        """The password, with mode 0600."""
        return self.root / "password"

    @property
    def users_lock(self) -> Path:
        """The file on which each process that uses the server holds a shared lock."""
        return self.root / "users.lock"

    @property
    def change_lock(self) -> Path:
        """The file that is locked while the server starts or stops."""
        return self.root / "change.lock"

    @property
    def process_file(self) -> Path:
        """The file with the server's process id."""
        return self.data / "postmaster.pid"

    @property
    def socket_directory(self) -> Path:
        """The folder of the Unix socket: the data directory, or one with a short name."""
        if _SOCKET_DIRECTORY.fullmatch(str(self.data)):
            return self.data
        name = sha256(os.fsencode(self.data)).hexdigest()[:16]
        return _TEMPORARY / f"cliniko_pipeline-{os.getuid()}-{name}"

    def password(self) -> str:
        """Return the password."""
        return self.password_file.read_text(encoding="utf-8").strip()

    def prepare(self) -> None:
        """Create missing files; raise DatabaseSetupError if that would lose data or be insecure."""
        if not self.data.exists():
            _initialize(self)
        elif not self.password_file.exists():
            raise DatabaseSetupError(
                f"The embedded PostgreSQL's password, {self.password_file}, is missing: put it back. To start with an"
                f" empty database, remove {self.data} with everything stored there."
            )
        account = programs.server_account()
        if account is not None:
            programs.give_data_to_account(self.data, account)
        if self.socket_directory != self.data:
            _create_socket_directory(self.socket_directory, account)


def _initialize(cluster: Cluster) -> None:
    """Create password and data. Data comes last, so the next start repeats an interrupted call."""
    for abandoned in cluster.root.glob("*.new-*"):
        if abandoned.is_dir():
            shutil.rmtree(abandoned, ignore_errors=True)
        else:
            abandoned.unlink(missing_ok=True)
    fresh = Path(tempfile.mkdtemp(prefix="data.new-", dir=cluster.root))
    password = secrets.token_urlsafe(32)
    log = cluster.root / "initdb.log"
    with tempfile.NamedTemporaryFile("w", prefix="password.new-", dir=cluster.root) as for_initdb:
        for_initdb.write(password)
        for_initdb.flush()
        account = programs.server_account()
        if account is not None:
            programs.give_data_to_account(fresh, account)
            os.chown(for_initdb.name, *account)
        options = (f"--username={USER}", f"--pwfile={for_initdb.name}", "--auth=scram-sha-256", "--encoding=UTF8")
        programs.execute(fresh, "initdb", *options, "--no-locale", log=log, output=log)
    _save_password(cluster, password)
    fresh.rename(cluster.data)


def _save_password(cluster: Cluster, password: str) -> None:
    draft = cluster.password_file.with_suffix(".new")
    draft.unlink(missing_ok=True)
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(password)
    draft.replace(cluster.password_file)


def _create_socket_directory(folder: Path, account: tuple[int, int] | None) -> None:
    """Create the folder in /tmp; raise DatabaseSetupError if another user has created it."""
    with suppress(FileExistsError):
        folder.mkdir(mode=0o711)
    found = folder.lstat()
    owners = {os.geteuid(), account[0] if account else os.geteuid()}
    if not stat.S_ISDIR(found.st_mode) or found.st_uid not in owners or stat.S_IMODE(found.st_mode) & 0o022:
        raise DatabaseSetupError(
            f"The embedded PostgreSQL needs the folder {folder} for its socket, but another user owns it or can write"
            " to it: remove it, set CLINIKO_PIPELINE_HOME to a folder with a shorter, plain name,"
            f" {programs.OWN_SERVER}."
        )
    if account is not None and found.st_uid != account[0]:
        os.chown(folder, *account, follow_symlinks=False)
