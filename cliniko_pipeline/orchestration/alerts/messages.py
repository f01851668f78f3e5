"""What alerts say: plain text, without a secret or a patient's data."""

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime

from cliniko_pipeline.orchestration.plans.alerts import CHECK, FAILED, MISSING, PAUSED, SYNC, AlertPlan, Problem
from cliniko_pipeline.postgres.operator_tables.alerts import Alert, Notice

RECOVERED = "recovered"
TEST = "test"

MOST_AT_ONCE = 10
"""More notices than this at one time are told in one: a key that is wrong everywhere is one trouble, not a thousand."""
LISTED = 25

_ADVICE = {
    PAUSED: (
        "Nothing is requested until this is mended. Store credentials that work (`cliniko-pipeline organizations add"
        " {id} --name NAME`, or the application): it then goes on by itself. Or mend what is said above, then"
        " `cliniko-pipeline organizations enable {id}`."
    ),
    FAILED: (
        "It is tried again by itself; active_patients stays as the last good sync left it. If it goes on failing, look"
        " at the run; `cliniko-pipeline doctor` checks what a sync needs."
    ),
    MISSING: (
        "As said above. Until then nothing is synced; partitions and active_patients stay as they are."
        " `cliniko-pipeline doctor` says when it is mended."
    ),
}
_LOOK = "Look at the run."
_CHECK_ADVICE = {
    "counts_agree_with_cliniko": "Nothing: the next sync reads everything. If it comes back, compare in Cliniko.",
    "nothing_was_rejected": (
        "Correct the records in Cliniko, or report to its support those that it does not answer;"
        " `select * from cliniko.rejected_records` in the organization's context says which and why. The rest was"
        " synced."
    ),
    "no_contact_is_used_twice": (
        "active_patients was left as it was. Look at cliniko.contact_mapping in the organization's context, and report"
        " it: this must not happen."
    ),
    "matches_are_kept": "As said above. It is tried again by itself with every sync.",
    "unmatched_share_is_below_the_limit": (
        "Check that the organization's contacts are complete; if so many people without a contact are right, raise"
        " CLINIKO_UNMATCHED_SHARE_LIMIT."
    ),
    "every_active_patient_with_a_contact_is_stored_once": (
        "Sync the organization again with `cliniko-pipeline sync {id} --full`; `cliniko-pipeline explain {id}"
        " PATIENT_ID` reckons one patient before your eyes. If it comes back, report it."
    ),
    "is_fresh": (
        "Check that Dagster's daemon runs and has room for more runs (docs/scaling.md), then the organization's last"
        " runs."
    ),
}


def advice(problem: Problem) -> str:
    """What to do about it."""
    name = problem.name.rpartition(" ")[2]
    text = _CHECK_ADVICE.get(name, _LOOK) if problem.kind == CHECK else _ADVICE[problem.kind]
    return text.replace("{id}", problem.organization_id)


def notices(plan: AlertPlan, names: Mapping[str, str], ui_url: str, now: datetime) -> list[Notice]:
    """The messages for what the plan tells; `names` are the organizations' by id."""

    def called(organization_id: str) -> str:
        name = names.get(organization_id, organization_id)
        return name if name == organization_id else f"{name} ({organization_id})"

    told = [
        *(_problem_notice(each, called, ui_url, now, is_repeated=False) for each in plan.raised),
        *(_problem_notice(each, called, ui_url, now, is_repeated=True) for each in plan.repeated),
        *(_recovery_notice(each, called, now) for each in plan.recovered),
    ]
    return told if len(told) <= MOST_AT_ONCE else [_digest(told, len(plan.recovered))]


def _problem_notice(
    problem: Problem, called: Callable[[str], str], ui_url: str, now: datetime, *, is_repeated: bool
) -> Notice:
    still = "still " if is_repeated else ""
    lines = [f"What happened: {problem.reason}", f"What to do: {advice(problem)}"]
    if problem.run_id is not None:
        lines.append(f"Run: {ui_url}/runs/{problem.run_id}")
    lines.append(f"Told at {now:%Y-%m-%d %H:%M} UTC.")
    return Notice(
        problem.kind, f"{called(problem.organization_id)}: {still}{_what(problem.name, problem.kind)}", "\n".join(lines)
    )


def _recovery_notice(alert: Alert, called: Callable[[str], str], now: datetime) -> Notice:
    minutes = max(0, int((now - alert.raised_at).total_seconds() // 60))
    if alert.kind == MISSING:
        what = "found again"
    else:
        what = "syncs again" if alert.name == SYNC else f"holds again: {_check_name(alert.name)}"
    body = f"Over, after {minutes} minutes: {alert.reason}\nWhat to do: nothing.\nTold at {now:%Y-%m-%d %H:%M} UTC."
    return Notice(RECOVERED, f"{called(alert.organization_id)}: {what}", body)


def _what(name: str, kind: str) -> str:
    if kind == CHECK:
        return f"does not hold: {_check_name(name)}"
    return {PAUSED: "paused", MISSING: "not found any more"}.get(kind, "syncs fail")


def _check_name(name: str) -> str:
    asset, _, check = name.rpartition(" ")
    return f"{check.replace('_', ' ')} ({asset})"


def _digest(told: Sequence[Notice], recovered: int) -> Notice:
    troubles = len(told) - recovered
    title = f"{troubles} new troubles" + (f", {recovered} are over" if recovered else "")
    lines = [f"- {notice.title}\n  {notice.body.replace(chr(10), chr(10) + '  ')}" for notice in told[:LISTED]]
    if len(told) > LISTED:
        lines.append(f"... and {len(told) - LISTED} more: `cliniko-pipeline alerts list` shows all.")
    kind = next((notice.kind for notice in told if notice.kind != RECOVERED), RECOVERED)
    return Notice(kind, title, "\n".join(lines))
