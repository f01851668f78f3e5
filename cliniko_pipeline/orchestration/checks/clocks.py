"""Clocks that differ more than they should: kept like the result of an asset check, so that status, the API and the
alerts report it.
"""

from collections.abc import Mapping

from cliniko_pipeline.clocks import ClockDifference
from cliniko_pipeline.postgres.operator_tables.check_results import CheckResult, failed_checks, note_checks
from cliniko_pipeline.runtime import Runtime

CLOCKS_AGREE = "clocks_agree"
_ASSET = "cliniko/patients"


def note_differences(runtime: Runtime, organization_id: str, cliniko: ClockDifference | None) -> Mapping[str, str]:
    """Keep which clocks differ notably, or no longer do; return it as metadata, nothing where all agree."""
    differences = [runtime.machine_clock(), *([] if cliniko is None else [cliniko])]
    remarks = [f"{each}." for each in differences if each.is_notable]
    with runtime.database.operator() as connection:
        was_noted = any(
            each.name == CLOCKS_AGREE and each.organization_id == organization_id for each in failed_checks(connection)
        )
        if remarks or was_noted:
            remark = " ".join(remarks) or "The clocks of this machine, the database and Cliniko agree."
            result = CheckResult(organization_id, _ASSET, CLOCKS_AGREE, not remarks, remark, run_id=None)
            note_checks(connection, [result])
    return {"clocks": " ".join(remarks)} if remarks else {}
