"""The Dagster resources `runtime` (settings, database, vault) and `cliniko` (clients).

Neither is a ConfigurableResource, because the `repr` of a ConfigurableResource shows its fields, including secrets.
"""

import gc
import time
from collections.abc import Callable, Generator
from contextlib import ExitStack, contextmanager
from typing import Protocol

import dagster as dg

from cliniko_pipeline.cliniko.client import ClinikoClient
from cliniko_pipeline.cliniko.events import Event, PageRead, Retrying, Waiting
from cliniko_pipeline.orchestration.runs.liveness import heartbeats_inside_run
from cliniko_pipeline.orchestration.runs.progress import RecordedProgress
from cliniko_pipeline.runtime import Runtime, open_runtime
from cliniko_pipeline.settings import load_settings

SECONDS_BETWEEN_LOG_LINES = 5.0


class ProgressListener(Protocol):
    """A callback for the events of all clients, called in the threads of the clients."""

    def __call__(self, organization_id: str, event: Event) -> None:
        """Handle the event. Raise nothing."""
        ...


class ClinikoResource:
    """A factory of clients that use an organization's credentials and request budget."""

    def __init__(self, runtime: Runtime, listener: ProgressListener | None = None, run_id: str | None = None) -> None:
        self._runtime = runtime
        self._listener = listener
        self._run_id = run_id

    def client(self, organization_id: str, log: "dg.DagsterLogManager") -> ClinikoClient:
        """Return a client for the organization's account.

        Raise OrganizationUnknownError, CredentialsError, SettingsError or DatabaseUnavailableError.
        """
        to_log = _logging(log)
        database, run_id = self._runtime.database, self._run_id
        record = None if run_id is None else RecordedProgress(database, organization_id, run_id)

        def on_event(event: Event) -> None:
            to_log(event)
            if record is not None:
                record(event)
            if self._listener is not None:
                self._listener(organization_id, event)

        return self._runtime.client(organization_id, on_event=on_event)


def _logging(log: "dg.DagsterLogManager") -> Callable[[Event], None]:
    last = time.monotonic()

    def on_event(event: Event) -> None:
        nonlocal last
        now = time.monotonic()
        if isinstance(event, PageRead) and event.number < event.pages and now - last < SECONDS_BETWEEN_LOG_LINES:
            return
        last = now
        log.info(describe(event))

    return on_event


def describe(event: Event) -> str:
    """Describe the event without a patient's data."""
    match event:
        case PageRead():
            return f"{event.resource}: page {event.number} of {event.pages}, {event.total_entries} records"
        case Waiting():
            return f"Waiting {event.seconds:.0f} s: {event.reason}"
        case Retrying():
            return f"{event.what}: {event.cause}, trying again in {event.seconds:.1f} s"


def runtime_resource() -> dg.ResourceDefinition:
    """Define the runtime of a process that Dagster started, with settings from the environment."""

    @contextmanager
    def opened(context: dg.InitResourceContext) -> Generator[Runtime, None, None]:
        with open_runtime(load_settings()) as runtime, ExitStack() as stack:
            if context.run is not None:
                _freeze_modules()
                stack.enter_context(heartbeats_inside_run(runtime, context.run.run_id))
            yield runtime

    return dg.ResourceDefinition(opened, description="Settings, database and credentials vault")


def _freeze_modules() -> None:
    """Exempt modules from garbage collection. Otherwise the interpreter examines them when the process ends.

    A process that executes many runs freezes once, because later it would also freeze the garbage of earlier runs.
    """
    if not gc.get_freeze_count():
        gc.freeze()


def cliniko_resource(listener: ProgressListener | None = None) -> dg.ResourceDefinition:
    """Define the factory of clients, which needs the resource `runtime`."""

    def made(context: dg.InitResourceContext) -> ClinikoResource:
        run_id = None if context.run is None else context.run.run_id
        return ClinikoResource(context.resources.runtime, listener, run_id)

    return dg.ResourceDefinition(
        made,
        required_resource_keys={"runtime"},
        description="Clients with the credentials of an organization",
    )
