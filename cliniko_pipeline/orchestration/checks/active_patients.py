"""The asset checks of the rows and the freshness of `active_patients`."""

import dagster as dg

from cliniko_pipeline.orchestration.assets.active_patients import active_patients
from cliniko_pipeline.orchestration.checks.definitions import Check, CheckedOrganization, CheckOutcome, define_checks
from cliniko_pipeline.orchestration.plans.due_syncs import freshness
from cliniko_pipeline.orchestration.schedule_settings import default_schedule
from cliniko_pipeline.postgres.operator_tables import scheduling
from cliniko_pipeline.postgres.operator_tables.scheduling import Scheduling
from cliniko_pipeline.postgres.reads import check_queries

FRESHNESS = "is_fresh"


def _is_stored_once(checked: CheckedOrganization) -> CheckOutcome:
    parameters = checked.runtime.rules.parameters(checked.as_of)
    rows = check_queries.recount_active_patients(checked.connection, parameters)
    remark = (
        f"{rows.stored} rows, equal to the recount."
        if rows.agrees
        else f"{rows.stored} rows: {rows.surplus} too many, {rows.twice} stored twice, {rows.missing} missing."
    )
    return CheckOutcome(rows.agrees, remark, {"missing": rows.missing, "surplus": rows.surplus, "twice": rows.twice})


def _is_fresh(checked: CheckedOrganization) -> CheckOutcome:
    with checked.runtime.database.operator() as connection:
        schedulings = {one.organization_id: one for one in scheduling.schedulings(connection)}
    own = schedulings.get(checked.organization_id, Scheduling(checked.organization_id, is_active=False))
    settings = checked.runtime.settings
    fresh = freshness(own, default_schedule(settings), settings.fresh_within, checked.runtime.now())
    return CheckOutcome(fresh.holds, fresh.remark, {})


ACTIVE_PATIENTS_CHECKS = define_checks(
    "check_active_patients",
    [
        Check(
            active_patients,
            "every_active_patient_with_a_contact_is_stored_once",
            "A recount from the appointments gives the same contacts, and each has one row.",
            dg.AssetCheckSeverity.ERROR,
            _is_stored_once,
        ),
        Check(
            active_patients,
            FRESHNESS,
            "A sync or a probe verified the rows within CLINIKO_FRESH_WITHIN_MINUTES, or within twice the"
            " organization's sync interval if that is longer.",
            dg.AssetCheckSeverity.ERROR,
            _is_fresh,
        ),
    ],
)
