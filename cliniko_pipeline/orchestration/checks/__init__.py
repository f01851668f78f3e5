"""The asset checks, named as claims, each for one organization at a time.

`claims` look at what is stored and are part of every sync; `counts` ask Cliniko, at the cost of requests.
"""

from cliniko_pipeline.orchestration.checks.asset_checks import CLAIMS
from cliniko_pipeline.orchestration.checks.counts import COUNTS

CHECKS = (*CLAIMS, *COUNTS)
