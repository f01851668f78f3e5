"""The simulated Cliniko in a process of its own, with one generated account."""

import gc
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from multiprocessing.connection import Connection

from benchmarks.processes import spawned
from benchmarks.reporting import progress
from cliniko_pipeline.sandbox.accounts.account import Account
from cliniko_pipeline.sandbox.accounts.generated import generated_account
from cliniko_pipeline.sandbox.server import Sandbox, running_sandbox

Change = Callable[[Sandbox, Account], None]


@dataclass(frozen=True)
class ServedAccount:
    """How to reach the account, and the ids of its patients."""

    host: str
    api_url: str
    api_key: str
    patient_ids: list[str]


class SandboxProcess:
    """A process that serves `account`."""

    def __init__(self, process: int, account: ServedAccount, connection: Connection) -> None:
        self.process = process
        self.account = account
        self._connection = connection

    def apply(self, change: Change) -> None:
        """Call a function of a module with the sandbox and the account, in their process."""
        self._connection.send(change)
        self._connection.recv()


@contextmanager
def sandbox_process(patients: int, appointments: int, group_share: float = 0.0) -> Generator[SandboxProcess]:
    """Serve a generated account of that size until the end of the block."""
    progress(f"Making an account of {patients:,} patients and {appointments:,} appointments")
    with spawned(_serve, patients, appointments, group_share) as (process, connection):
        yield SandboxProcess(process.pid or 0, connection.recv(), connection)


def _serve(connection: Connection, patients: int, appointments: int, group_share: float) -> None:
    account = generated_account(patients, appointments, 1, datetime.now(UTC), group_share)
    # The records stay: collecting garbage among them would only slow the answers.
    gc.collect()
    gc.freeze()
    with running_sandbox([account]) as sandbox, suppress(EOFError, BrokenPipeError):
        ids = list(account.records["patients"])
        connection.send(ServedAccount(sandbox.host, sandbox.base_url(account), account.api_key, ids))
        while True:
            change: Change = connection.recv()
            change(sandbox, account)
            connection.send(None)
