"""The schedules and sensors that were stopped in the Dagster UI, read from Dagster's tables.

Dagster's API is not used, because its import takes seconds. If an operator's dagster.yaml sets a storage in another
database, nothing is found.
"""

import sqlalchemy as sa

from cliniko_pipeline.postgres.engine import Database, sql

LOCATION = "cliniko_pipeline"


def stopped_instigators(database: Database) -> list[str]:
    """Return the names of the pipeline's stopped schedules and sensors."""
    with database.operator() as connection:
        exists = connection.execute(sa.text("select to_regclass('dagster.instigators') is not null")).scalar_one()
        if not exists:
            return []
        return list(
            connection.execute(sa.text(sql("scheduling/stopped_instigators")), {"location": LOCATION}).scalars()
        )


def stopped_problem(database: Database, ui_url: str) -> str | None:
    """Return a description of the stopped schedules and sensors, or None if all of them run."""
    names = stopped_instigators(database)
    if not names:
        return None
    are, do, them = ("is", "does", "it") if len(names) == 1 else ("are", "do", "them")
    return (
        f"{', '.join(names)} {are} stopped in Dagster and {do} nothing: switch {them} on under Automation in the"
        f" Dagster UI ({ui_url}/automation)."
    )
