"""The check that clocks agree. It is stored like Dagster's asset checks, but is none of them."""

from collections.abc import Mapping

from cliniko_pipeline.clocks import ClockDifference
from cliniko_pipeline.postgres.operator_tables.check_results import CheckResult, failed_checks, note_checks
from cliniko_pipeline.runtime import Runtime

CLOCKS_AGREE = "clocks_agree"
_ASSET = "cliniko/patients"


def store_clock_check(runtime: Runtime, organization_id: str, cliniko: ClockDifference | None) -> Mapping[str, str]:
    """Store whether the clocks agree. Return notable differences as an asset's metadata."""
    differences = [runtime.machine_clock(), *([] if cliniko is None else [cliniko])]
    remark = " ".join(f"{difference}." for difference in differences if difference.is_notable)
    with runtime.database.operator() as connection:
        has_failed = any(
            (check.name, check.organization_id) == (CLOCKS_AGREE, organization_id)
            for check in failed_checks(connection)
        )
        if remark or has_failed:
            text = remark or "The clocks of this machine, the database and Cliniko agree."
            note_checks(connection, [CheckResult(organization_id, _ASSET, CLOCKS_AGREE, not remark, text, run_id=None)])
    return {"clocks": remark} if remark else {}
