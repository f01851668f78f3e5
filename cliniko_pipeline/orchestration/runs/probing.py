"""The probes of a tick, which come before the run requests of a schedule or sensor."""

from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from datetime import datetime

from cliniko_pipeline.probes import Failed, NeedsRun, Postponed, Unchanged, Verdict, compare_counts, probe_and_note
from cliniko_pipeline.runtime import Runtime

PROBE_SECONDS = 15.0
"""The time for probes in one tick. Dagster ends a tick after 60 s. The next tick probes the rest."""


@dataclass(frozen=True)
class ProbedOrganizations:
    """The ids of probed organizations, by what was found."""

    needing_run: AbstractSet[str]
    unchanged: AbstractSet[str]
    failed: AbstractSet[str]
    postponed: AbstractSet[str]

    def __str__(self) -> str:
        return (
            f"Probes: {len(self.needing_run)} need a run, {len(self.unchanged)} are unchanged, {len(self.failed)}"
            f" failed, {len(self.postponed)} are postponed."
        )


def probe_for_tick(runtime: Runtime, organization_ids: Sequence[str], now: datetime) -> ProbedOrganizations:
    """Probe the organizations and store the results. Postponed ones stay due for the next tick."""
    return _sorted(probe_and_note(runtime, organization_ids, seconds=PROBE_SECONDS, requested_at=now))


def compare_counts_for_tick(runtime: Runtime, organization_ids: Sequence[str]) -> ProbedOrganizations:
    """Compare the organizations' numbers of records with Cliniko's."""
    return _sorted(compare_counts(runtime, organization_ids, seconds=PROBE_SECONDS))


def _sorted(verdicts: Mapping[str, Verdict]) -> ProbedOrganizations:
    def of(kind: type[Verdict]) -> set[str]:
        return {id_ for id_, verdict in verdicts.items() if isinstance(verdict, kind)}

    return ProbedOrganizations(of(NeedsRun), of(Unchanged), of(Failed), of(Postponed))
