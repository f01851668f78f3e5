"""The composition root of a process: settings, database, vault and Cliniko clients.

All threads share the runtime's connection pool and request budgets. This module does not import Dagster.
"""

import time
from collections.abc import Callable, Generator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from datetime import datetime, timedelta
from functools import cached_property
from typing import TYPE_CHECKING

from cliniko_pipeline.cliniko.events import Event
from cliniko_pipeline.cliniko.exchange.throttle import BudgetRegistry, RequestBudget
from cliniko_pipeline.cliniko.shards import resolve_api_url
from cliniko_pipeline.clocks import CLINIKO, MACHINE, ClockDifference, at
from cliniko_pipeline.errors import CredentialsError, in_organization
from cliniko_pipeline.postgres.engine import Database
from cliniko_pipeline.postgres.operator_tables import organizations
from cliniko_pipeline.postgres.operator_tables.request_budgets import SharedRequestBudget
from cliniko_pipeline.postgres.rules import Rules
from cliniko_pipeline.postgres.schema.identity import require_own
from cliniko_pipeline.postgres.server.embedded import EmbeddedServer
from cliniko_pipeline.settings import Settings

# Imported where they are used, because commands that do not use them, such as `status`, start in half the time.
if TYPE_CHECKING:
    import httpx

    from cliniko_pipeline.cliniko.client import ClinikoClient
    from cliniko_pipeline.cliniko.exchange.sender import Access
    from cliniko_pipeline.credentials.vault import ClinikoCredentials, Vault


class Runtime:
    """The settings, database, vault and Cliniko clients of a process. Thread-safe.

    Args:
        sleep: the function called for every wait, so that a caller can end waits early.
        wall_clock: this machine's clock in UNIX seconds, which is only compared with the database's clock.
        elapsed: a monotonic clock in seconds.
    """

    def __init__(
        self,
        settings: Settings,
        database: Database,
        sleep: Callable[[float], None],
        wall_clock: Callable[[], float] = time.time,
        elapsed: Callable[[], float] = time.monotonic,
    ) -> None:
        self.settings = settings
        self.database = database
        self.elapsed = elapsed
        self._sleep = sleep
        self._wall_clock = wall_clock
        self._budgets = BudgetRegistry(self._budget_of)

    def _budget_of(self, key_digest: str) -> RequestBudget:
        return SharedRequestBudget(self.database, key_digest, self.settings.requests_per_minute, sleep=self._sleep)

    def now(self) -> datetime:
        """Return the time by the database's clock, which all machines share."""
        return self.database.now()

    def machine_clock(self) -> ClockDifference:
        """Return how far this machine's clock is ahead of the database's clock."""
        before = self._wall_clock()
        now = self.database.now()
        # The database reads its clock between two readings of this machine's clock, so compare it with their mean.
        return ClockDifference(MACHINE, at((before + self._wall_clock()) / 2) - now, self.max_clock_skew)

    def _compare_cliniko_clock(self, now: datetime) -> ClockDifference:
        """Return how far Cliniko's clock, which shows `now`, is ahead of the database's clock."""
        return ClockDifference(CLINIKO, now - self.now(), self.max_clock_skew)

    def to_database_time(self, instant: datetime) -> datetime:
        """Convert an instant of this machine's clock to the database's, if they differ notably."""
        difference = self.machine_clock()
        return instant - difference.ahead if difference.is_notable else instant

    @property
    def max_clock_skew(self) -> timedelta:
        """The largest difference between clocks at which a sync may run."""
        return timedelta(minutes=self.settings.max_clock_skew_minutes)

    @property
    def rules(self) -> Rules:
        """The rules by which attendances are counted."""
        return Rules(timedelta(days=self.settings.activity_window_days), self.settings.count_no_shows)

    @cached_property
    def vault(self) -> "Vault":
        """The vault for stored credentials. Raises SettingsError if there is no encryption key."""
        from cliniko_pipeline.credentials.vault import Vault  # noqa: PLC0415

        return Vault(self.settings.ensure_encryption_keys())

    def credentials(self, organization_id: str) -> "ClinikoCredentials":
        """Return the organization's credentials, decrypted.

        Raise OrganizationUnknownError, CredentialsError, SettingsError.
        """
        with self.database.operator() as connection:
            stored = organizations.stored_credentials(connection, organization_id)
        try:
            return self.vault.decrypt(stored)
        except CredentialsError as error:
            raise in_organization(organization_id, error) from None

    def client(
        self,
        organization_id: str,
        *,
        on_event: Callable[[Event], None] | None = None,
        max_attempts: int | None = None,
    ) -> "ClinikoClient":
        """Return a client with the organization's stored credentials.

        Raise the errors of `credentials` and `client_for`, and DatabaseCopyError if this database is a copy.
        """
        require_own(self.database)
        credentials = self.credentials(organization_id)
        return self.client_for(organization_id, credentials, on_event=on_event, max_attempts=max_attempts)

    def client_for(
        self,
        organization_id: str,
        credentials: "ClinikoCredentials",
        *,
        on_event: Callable[[Event], None] | None = None,
        max_attempts: int | None = None,
    ) -> "ClinikoClient":
        """Return a client with credentials that may not be stored yet.

        `max_attempts` replaces the client's default limit. Raise CredentialsFormatError if the credentials' host is not
        allowed. Raise SettingsError if CLINIKO_CONTACT_EMAIL is required for the host, but not set.
        """
        from cliniko_pipeline.cliniko.client import ClinikoClient  # noqa: PLC0415
        from cliniko_pipeline.cliniko.exchange.sender import RequestOptions  # noqa: PLC0415

        options = RequestOptions(sleep=self._sleep)
        return ClinikoClient(
            organization_id,
            self._access(organization_id, credentials),
            self._budgets.budget_for(credentials.api_key),
            options=options if max_attempts is None else replace(options, max_attempts=max_attempts),
            compare_clock=self._compare_cliniko_clock,
            on_event=on_event,
        )

    def probe_client(
        self,
        organization_id: str,
        credentials: "ClinikoCredentials",
        transport: "httpx.BaseTransport",
        budget: RequestBudget,
    ) -> "ClinikoClient":
        """Return a client that attempts each request once, does not compare clocks, and leaves the transport open.

        Raise the errors of `client_for`.
        """
        from cliniko_pipeline.cliniko.client import ClinikoClient  # noqa: PLC0415
        from cliniko_pipeline.cliniko.exchange.sender import RequestOptions  # noqa: PLC0415

        access = self._access(organization_id, credentials)
        return ClinikoClient(
            organization_id, access, budget, transport=transport, options=RequestOptions(max_attempts=1)
        )

    def _access(self, organization_id: str, credentials: "ClinikoCredentials") -> "Access":
        from cliniko_pipeline.cliniko.exchange.sender import Access  # noqa: PLC0415

        try:
            api_url = resolve_api_url(
                api_key=credentials.api_key,
                region=credentials.region,
                api_url=credentials.api_url,
                allowed_hosts=self.settings.allowed_hosts,
            )
        except CredentialsError as error:
            raise in_organization(organization_id, error) from None
        return Access(credentials.api_key, api_url, self.settings.user_agent_for(api_url))


@contextmanager
def open_runtime(
    settings: Settings, *, sleep: Callable[[float], None] = time.sleep, elapsed: Callable[[], float] = time.monotonic
) -> Generator[Runtime, None, None]:
    """Open the runtime; start the embedded database server unless DATABASE_URL is set.

    `sleep` and `elapsed` are those of Runtime. Opening the runtime does not connect to the server in DATABASE_URL.

    Raises DatabaseSetupError if the embedded server cannot run.
    """
    with ExitStack() as stack:
        if settings.database_url is None:
            url = stack.enter_context(EmbeddedServer(settings.home / "postgres")).url
        else:
            url = settings.database_url
        database = Database(url)
        stack.callback(database.close)
        yield Runtime(settings, database, sleep, elapsed=elapsed)
