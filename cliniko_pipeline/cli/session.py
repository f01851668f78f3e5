"""Common start of commands: they load the settings and open a database that must have the current schema."""

from collections.abc import Generator
from contextlib import contextmanager

from cliniko_pipeline.postgres.schema import upgrade as schema
from cliniko_pipeline.postgres.schema.contacts_filter import require_stored
from cliniko_pipeline.runtime import Runtime, open_runtime
from cliniko_pipeline.settings import load_settings

CHECK_ATTEMPTS = 2
"""Attempts of a request that checks an API key. They are few, because a person waits for the result."""


@contextmanager
def session() -> Generator[Runtime, None, None]:
    """Open a runtime whose database has the schema of this version.

    An embedded database is migrated here. Any other database is migrated only by `cliniko-pipeline migrate`.
    Raises SettingsError, DatabaseSetupError, DatabaseUnavailableError.
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
