"""What most commands begin with: settings from the environment, the runtime, and a database that is ready."""

from collections.abc import Generator
from contextlib import contextmanager

from cliniko_pipeline.postgres.schema import upgrade as schema
from cliniko_pipeline.postgres.schema.contacts_filter import require_stored
from cliniko_pipeline.runtime import Runtime, open_runtime
from cliniko_pipeline.settings import load_settings

CHECK_ATTEMPTS = 2
"""How often a command asks Cliniko whether a key works: somebody waits for the answer."""


@contextmanager
def session() -> Generator[Runtime, None, None]:
    """A runtime whose database has the schema of this version.

    The embedded database is brought up to date by itself; an operator's only by `cliniko-pipeline migrate`. Raises
    SettingsError, DatabaseSetupError, DatabaseUnavailableError.
    """
    with open_runtime(load_settings()) as runtime:
        if runtime.settings.embedded_database:
            schema.migrate(
                runtime.database, create_application_tables=True, contacts_filter=runtime.settings.contacts_filter
            )
        else:
            schema.require_current(runtime.database)
            require_stored(runtime.database, runtime.settings.contacts_filter)
        yield runtime
