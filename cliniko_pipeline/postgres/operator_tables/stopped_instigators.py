"""The schedules and sensors that somebody has stopped in Dagster, read from its tables.

Without Dagster itself, whose import takes seconds. A storage elsewhere, by an operator's own dagster.yaml, is not seen.
"""

import sqlalchemy as sa

from cliniko_pipeline.postgres.engine import Database, sql

LOCATION = "cliniko_pipeline"


def stopped_instigators(database: Database) -> list[str]:
    """Return the names of the pipeline's stopped schedules and sensors; all of them run unless somebody stops them."""
    with database.operator() as connection:
        exists = connection.execute(sa.text("select to_regclass('dagster.instigators') is not null")).scalar_one()
        if not exists:
            return []
        return list(
            connection.execute(sa.text(sql("scheduling/stopped_instigators")), {"location": LOCATION}).scalars()
        )


def stopped_problem(database: Database, ui_url: str) -> str | None:
    """Return what to say where some are stopped; None: none is."""
    names = stopped_instigators(database)
    if not names:
        return None
    are, do, them = ("is", "does", "it") if len(names) == 1 else ("are", "do", "them")
    return (
        f"{', '.join(names)} {are} stopped in Dagster and {do} nothing: switch {them} on under Automation in the"
        f" Dagster UI ({ui_url}/automation)."
    )
