"""Claims about what is stored, looked at after every sync."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import dagster as dg
from sqlalchemy.engine import Connection

from cliniko_pipeline.instants import parse_instant
from cliniko_pipeline.orchestration.assets.active_patients import active_patients
from cliniko_pipeline.orchestration.assets.appointments import SOURCES as APPOINTMENT_SOURCES
from cliniko_pipeline.orchestration.assets.appointments import appointments
from cliniko_pipeline.orchestration.assets.contact_mapping import contact_mapping
from cliniko_pipeline.orchestration.assets.patients import SOURCE as PATIENT_SOURCE
from cliniko_pipeline.orchestration.assets.patients import patients
from cliniko_pipeline.orchestration.assets.values import MATCHES_ARE_KEPT
from cliniko_pipeline.orchestration.checks.results import (
    noted,
    organization_of,
    partitioned_checks,
    told_as_failures,
)
from cliniko_pipeline.orchestration.partitions import ORGANIZATIONS
from cliniko_pipeline.orchestration.plans.due_syncs import freshness
from cliniko_pipeline.orchestration.runs.recomputation import is_forced
from cliniko_pipeline.orchestration.schedule_settings import default_schedule
from cliniko_pipeline.postgres.operator_tables import scheduling, sync_runs
from cliniko_pipeline.postgres.operator_tables.scheduling import Scheduling
from cliniko_pipeline.postgres.reads import check_queries as claims
from cliniko_pipeline.runtime import Runtime

FRESHNESS = "is_not_older_than_promised"
UNCHANGED = "found_earlier_of_the_same_rows"
"""What the metadata of a result call that it was not reckoned anew, since nothing but the time has changed."""


@dataclass(frozen=True)
class Finding:
    """Whether a claim holds, and the numbers that say so."""

    holds: bool
    remark: str
    numbers: Mapping[str, int | float]


@dataclass(frozen=True)
class Look:
    """What a claim is looked at with: a transaction in the context of the organization, and what was asked for. Unless
    with `force`, what was found earlier of the same rows counts.
    """

    connection: Connection
    runtime: Runtime
    organization_id: str
    as_of: datetime
    force: bool


@dataclass(frozen=True)
class Claim:
    """Something that should be true of an asset for each organization.

    One that `is_blocking` keeps what depends on the asset from being written; the others only tell.
    """

    asset: dg.AssetsDefinition
    name: str
    description: str
    severity: dg.AssetCheckSeverity
    look: Callable[[Look], Finding]
    is_blocking: bool = False

    @property
    def key(self) -> dg.AssetCheckKey:
        """Dagster's."""
        return dg.AssetCheckKey(self.asset.key, self.name)


def _nothing_rejected(resources: Iterable[str]) -> Callable[[Look], Finding]:
    own = frozenset(resources)

    def look(at: Look) -> Finding:
        found = {name: records for name, records in claims.rejected_counts(at.connection).items() if name in own}
        remark = ", ".join(f"{records} of {name}" for name, records in found.items())
        told = f"Set aside, since they could not be understood: {remark}." if found else "Every record was understood."
        return Finding(not found, told, {"records_set_aside": sum(found.values())})

    return look


def _no_contact_twice(at: Look) -> Finding:
    counts, is_kept = claims.mapping_counts(at.connection, force=at.force)
    twice = counts.contacts_used_twice
    told = f"{twice} contacts stand for more than one person." if twice else "Each contact stands for one person."
    return Finding(not twice, told, {"contacts_used_twice": twice, UNCHANGED: is_kept})


def _matches_kept(at: Look) -> Finding:
    found, is_kept = claims.kept_matches(at.connection, force=at.force)
    told = f"{found.lost} of {found.matched} matched contacts are no longer there."
    holds = not found.is_suspicious(at.runtime.settings.lost_matches_share_limit)
    return Finding(holds, told, {"matched": found.matched, "lost": found.lost, UNCHANGED: is_kept})


def _unmatched_share(at: Look) -> Finding:
    counts, is_kept = claims.mapping_counts(at.connection, force=at.force)
    share, limit = counts.unmatched_share, at.runtime.settings.unmatched_share_limit
    told = (
        f"{counts.current_unmatched} of {counts.current_people} current people have no contact"
        f" ({share:.0%}; the limit is {limit:.0%})."
    )
    numbers = {"unmatched": counts.current_unmatched, "unmatched_share": round(share, 4), UNCHANGED: is_kept}
    return Finding(share <= limit, told, numbers)


def _stored_once(at: Look) -> Finding:
    settings = at.runtime.settings
    parameters = {
        "as_of": at.as_of,
        "activity_window": timedelta(days=settings.activity_window_days),
        "count_no_shows": settings.count_no_shows,
    }
    found = claims.recount_active_patients(at.connection, parameters)
    told = (
        f"{found.stored} rows, as a second reckoning has it."
        if found.agrees
        else f"Of {found.stored} rows {found.surplus} should not be there and {found.twice} stand there twice;"
        f" {found.missing} are missing."
    )
    numbers = {"missing": found.missing, "surplus": found.surplus, "twice": found.twice}
    return Finding(found.agrees, told, numbers)


def _fresh(at: Look) -> Finding:
    with at.runtime.database.operator() as connection:
        all_of_them = {each.organization_id: each for each in scheduling.schedulings(connection)}
    found = all_of_them.get(at.organization_id, Scheduling(at.organization_id, is_active=False))
    settings = at.runtime.settings
    fresh = freshness(found, default_schedule(settings), settings.fresh_within, at.runtime.now())
    return Finding(fresh.holds, fresh.remark, {})


_EXTRACTED = (
    (patients, [PATIENT_SOURCE.resource.name]),
    (appointments, [source.resource.name for source in APPOINTMENT_SOURCES]),
)

_CLAIMS = (
    *(
        Claim(
            asset,
            "nothing_was_rejected",
            "Every record that Cliniko sent could be understood. Those that could not are set aside with a reason, in"
            " cliniko.rejected_records, and the rest goes on.",
            dg.AssetCheckSeverity.WARN,
            _nothing_rejected(resources),
        )
        for asset, resources in _EXTRACTED
    ),
    Claim(
        contact_mapping,
        "no_contact_is_used_twice",
        "No contact stands for two people: one would see the other's appointments. If it does, active_patients stays"
        " as it was.",
        dg.AssetCheckSeverity.ERROR,
        _no_contact_twice,
        is_blocking=True,
    ),
    Claim(
        contact_mapping,
        MATCHES_ARE_KEPT,
        "No suspicious share of the matches is lost at once (CLINIKO_LOST_MATCHES_SHARE_LIMIT, at least ten), and not"
        " all contacts. If it is, contact_mapping and active_patients stay as they were.",
        dg.AssetCheckSeverity.ERROR,
        _matches_kept,
        is_blocking=True,
    ),
    Claim(
        contact_mapping,
        "unmatched_share_is_below_the_limit",
        "Not too many people are without a contact (CLINIKO_UNMATCHED_SHARE_LIMIT).",
        dg.AssetCheckSeverity.WARN,
        _unmatched_share,
    ),
    Claim(
        active_patients,
        "every_active_patient_with_a_contact_is_stored_once",
        "A second reckoning, from the appointments up, finds the same contacts, and each has one row.",
        dg.AssetCheckSeverity.ERROR,
        _stored_once,
    ),
    Claim(
        active_patients,
        FRESHNESS,
        "The last sync of everything succeeded no longer ago than promised (CLINIKO_FRESH_WITHIN_MINUTES, or twice"
        " the time between two syncs of the organization where that is longer).",
        dg.AssetCheckSeverity.ERROR,
        _fresh,
    ),
)


def _checks(name: str, of: tuple[Claim, ...]) -> dg.AssetChecksDefinition:
    """One step for several claims: each step costs more than the look."""
    by_key = {claim.key: claim for claim in of}

    @dg.multi_asset_check(
        name=name,
        specs=[
            dg.AssetCheckSpec(
                claim.name,
                asset=claim.asset,
                description=claim.description,
                blocking=claim.is_blocking,
                partitions_def=ORGANIZATIONS,
            )
            for claim in of
        ],
        can_subset=True,
    )
    def look(
        context: dg.AssetCheckExecutionContext, runtime: dg.ResourceParam[Runtime]
    ) -> Iterator[dg.AssetCheckResult]:
        with told_as_failures():
            organization_id = organization_of(context)
            selected = [by_key[key] for key in sorted(context.selected_asset_check_keys)]
            with runtime.database.organization(organization_id) as connection:
                force = is_forced(context.job_def, context.run.run_config)
                at = Look(connection, runtime, organization_id, _as_of(context, runtime), force)
                found = [(claim, claim.look(at)) for claim in selected]
                _note_blocked(connection, context, found)
            results = [_result(claim, finding) for claim, finding in found]
            yield from noted(context, runtime, organization_id, results)

    return look


def _as_of(context: dg.AssetCheckExecutionContext, runtime: Runtime) -> datetime:
    """The instant that the run was told to judge by, or now."""
    config: Any = context.run.run_config
    told: str | None = config.get("ops", {}).get("active_patients", {}).get("config", {}).get("as_of")
    return runtime.now() if told is None else parse_instant(told)


def _result(claim: Claim, finding: Finding) -> dg.AssetCheckResult:
    return dg.AssetCheckResult(
        asset_key=claim.asset.key,
        check_name=claim.name,
        passed=finding.holds,
        severity=claim.severity,
        description=finding.remark,
        metadata=finding.numbers,
    )


def _note_blocked(
    connection: Connection, context: dg.AssetCheckExecutionContext, found: Iterable[tuple[Claim, Finding]]
) -> None:
    """Dagster ends the run by itself; `cliniko.sync_runs` has to be told."""
    for claim, finding in found:
        if claim.is_blocking and not finding.holds:
            sync_runs.finished(
                connection,
                run_id=context.run.run_id,
                asset=claim.asset.key.to_user_string(),
                counts={},
                requests=0,
                seconds_waited=0.0,
                error=f"{claim.name} does not hold: {finding.remark}",
            )


with partitioned_checks():
    CLAIMS = (
        _checks("claims_of_what_was_read", _CLAIMS[:2]),
        _checks("claims_of_contact_mapping", _CLAIMS[2:5]),
        _checks("claims_of_active_patients", _CLAIMS[5:]),
    )
