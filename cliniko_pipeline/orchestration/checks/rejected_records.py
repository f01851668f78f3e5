"""The asset checks of rejected records."""

from collections.abc import Iterable

import dagster as dg

from cliniko_pipeline.orchestration.assets.appointments import SOURCES as APPOINTMENT_SOURCES
from cliniko_pipeline.orchestration.assets.appointments import appointments
from cliniko_pipeline.orchestration.assets.patients import SOURCE as PATIENT_SOURCE
from cliniko_pipeline.orchestration.assets.patients import patients
from cliniko_pipeline.orchestration.checks.definitions import Check, CheckedOrganization, CheckOutcome, define_checks
from cliniko_pipeline.postgres.reads import check_queries


def _nothing_was_rejected(asset: dg.AssetsDefinition, resources: Iterable[str]) -> Check:
    own = frozenset(resources)

    def run(checked: CheckedOrganization) -> CheckOutcome:
        counts = {
            name: count for name, count in check_queries.rejected_counts(checked.connection).items() if name in own
        }
        listed = ", ".join(f"{count} of {name}" for name, count in counts.items())
        remark = f"Rejected records: {listed}." if counts else "No record was rejected."
        return CheckOutcome(not counts, remark, {"rejected_records": sum(counts.values())})

    return Check(
        asset,
        "nothing_was_rejected",
        "Every record of Cliniko could be read and understood. The id of a rejected record and the reason are stored in"
        " cliniko.rejected_records. All other records are synced.",
        dg.AssetCheckSeverity.WARN,
        run,
    )


REJECTED_RECORD_CHECKS = define_checks(
    "check_rejected_records",
    [
        _nothing_was_rejected(patients, [PATIENT_SOURCE.resource.name]),
        _nothing_was_rejected(appointments, [source.resource.name for source in APPOINTMENT_SOURCES]),
    ],
)
