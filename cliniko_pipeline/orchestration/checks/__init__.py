"""The asset checks of an organization. A check's name states what is true if it passes.

`SYNC_CHECKS` read only the database and are part of every sync. `COUNT_CHECKS` send requests to Cliniko.
"""

from cliniko_pipeline.orchestration.checks.active_patients import ACTIVE_PATIENTS_CHECKS
from cliniko_pipeline.orchestration.checks.contact_mapping import CONTACT_MAPPING_CHECKS
from cliniko_pipeline.orchestration.checks.counts import COUNT_CHECKS
from cliniko_pipeline.orchestration.checks.rejected_records import REJECTED_RECORD_CHECKS

SYNC_CHECKS = (REJECTED_RECORD_CHECKS, CONTACT_MAPPING_CHECKS, ACTIVE_PATIENTS_CHECKS)
CHECKS = (*SYNC_CHECKS, *COUNT_CHECKS)
