"""What the computed tables `contact_mapping` and `active_patients` are computed from."""

from collections.abc import Callable
from datetime import datetime

from sqlalchemy.engine import Connection

from cliniko_pipeline.postgres.engine import sql
from cliniko_pipeline.postgres.rules import Rules
from cliniko_pipeline.postgres.tables import ACTIVE_PATIENTS, APPOINTMENTS, ATTENDEES, CONTACT_MAPPING, PATIENTS
from cliniko_pipeline.postgres.writing.derivations import Derivation, Timing

Inspect = Callable[[Connection], None]


def contact_mapping(inspect: Inspect | None = None) -> Derivation:
    """Return the derivation of the mapping. `inspect` is the derivation's own."""
    return Derivation(CONTACT_MAPPING, sql("transforms/contact_mapping"), (PATIENTS,), inspect=inspect)


def active_patients(as_of: datetime, rules: Rules, inspect: Inspect | None = None) -> Derivation:
    """Return the derivation of the active patients at an instant. `inspect` is the derivation's own."""
    return Derivation(
        ACTIVE_PATIENTS,
        sql("transforms/active_patients"),
        (PATIENTS, APPOINTMENTS, ATTENDEES, CONTACT_MAPPING),
        rules.lasting_parameters,
        Timing(as_of, sql("transforms/active_patients_next_change")),
        sql("transforms/active_patients_digest"),
        inspect,
    )
