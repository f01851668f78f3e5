"""The texts of alerts, which contain no secrets and no patient data."""

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime

from cliniko_pipeline.orchestration.plans.alerts import CHECK, FAILED, MISSING, PAUSED, SYNC, AlertPlan, Problem
from cliniko_pipeline.postgres.operator_tables.alerts import Alert, Message

RECOVERED = "recovered"
TEST = "test"

MAX_SINGLE_MESSAGES = 10
"""More messages than this are sent as one digest, because they probably have one common cause."""
MAX_LISTED = 25

_ADVICE = {
    PAUSED: (
        "Store working credentials (`cliniko-pipeline organizations add {id} --name NAME`, or in the application):"
        " syncs then resume automatically. If the credentials are right, solve the problem described above, then run"
        " `cliniko-pipeline organizations enable {id}`. Nothing is synced until then."
    ),
    FAILED: (
        "The sync is retried automatically; active_patients stays as the last successful sync left it. If the syncs"
        " keep failing, look at the run. `cliniko-pipeline doctor` checks what a sync needs."
    ),
    MISSING: (
        "Solve the problem described above. Nothing is synced until then; partitions and active_patients stay"
        " unchanged. `cliniko-pipeline doctor` shows whether the problem is solved."
    ),
}
_DEFAULT_ADVICE = "Look at the run."
_CHECK_ADVICE = {
    "counts_agree_with_cliniko": (
        "Nothing, because the next sync reads the resource in full. If the check fails again, compare the stored"
        " records with the records in Cliniko."
    ),
    "nothing_was_rejected": (
        "`select * from cliniko.rejected_records` in the organization's context shows the records and the reasons."
        " Correct these records in Cliniko. If Cliniko does not respond to the request for a record, report that to"
        " Cliniko's support. All other records were synced."
    ),
    "no_contact_is_used_twice": (
        "active_patients was not changed. Look at cliniko.contact_mapping in the organization's context, and report a"
        " bug."
    ),
    "matches_are_kept": "Do what is described above. Every sync repeats the check.",
    "unmatched_share_is_below_the_limit": (
        "Check that the organization's contacts are complete. If it is right that this many patients have no contact,"
        " raise CLINIKO_UNMATCHED_SHARE_LIMIT."
    ),
    "every_active_patient_with_a_contact_is_stored_once": (
        "Sync the organization again with `cliniko-pipeline sync {id} --full`; `cliniko-pipeline explain {id}"
        " PATIENT_ID` shows the computation for one patient. If the check fails again, report a bug."
    ),
    "is_fresh": (
        "Check that Dagster's daemon runs and that its run queue is not full (docs/scaling.md), then look at the"
        " organization's last runs."
    ),
}


def advice(problem: Problem) -> str:
    """Return what to do about the problem."""
    name = problem.name.rpartition(" ")[2]
    text = _CHECK_ADVICE.get(name, _DEFAULT_ADVICE) if problem.kind == CHECK else _ADVICE[problem.kind]
    return text.replace("{id}", problem.organization_id)


def build_messages(plan: AlertPlan, names: Mapping[str, str], ui_url: str, now: datetime) -> list[Message]:
    """Return the plan's messages. `names` maps the organizations' ids to their names."""

    def label(organization_id: str) -> str:
        name = names.get(organization_id, organization_id)
        return name if name == organization_id else f"{name} ({organization_id})"

    messages = [
        *(_problem_message(problem, label, ui_url, now, is_repeated=False) for problem in plan.raised),
        *(_problem_message(problem, label, ui_url, now, is_repeated=True) for problem in plan.repeated),
        *(_recovery_message(alert, label, now) for alert in plan.recovered),
    ]
    return messages if len(messages) <= MAX_SINGLE_MESSAGES else [_digest(messages, len(plan.recovered))]


def _problem_message(
    problem: Problem, label: Callable[[str], str], ui_url: str, now: datetime, *, is_repeated: bool
) -> Message:
    still = "still " if is_repeated else ""
    lines = [f"What happened: {problem.reason}", f"What to do: {advice(problem)}"]
    if problem.run_id is not None:
        lines.append(f"Run: {ui_url}/runs/{problem.run_id}")
    lines.append(f"Sent at {now:%Y-%m-%d %H:%M} UTC.")
    return Message(
        problem.kind, f"{label(problem.organization_id)}: {still}{_what(problem.name, problem.kind)}", "\n".join(lines)
    )


def _recovery_message(alert: Alert, label: Callable[[str], str], now: datetime) -> Message:
    minutes = max(0, int((now - alert.raised_at).total_seconds() // 60))
    if alert.kind == MISSING:
        what = "found again"
    else:
        what = "syncs again" if alert.name == SYNC else f"check passes again: {_check_name(alert.name)}"
    body = f"Solved after {minutes} minutes: {alert.reason}\nWhat to do: nothing.\nSent at {now:%Y-%m-%d %H:%M} UTC."
    return Message(RECOVERED, f"{label(alert.organization_id)}: {what}", body)


def _what(name: str, kind: str) -> str:
    if kind == CHECK:
        return f"check fails: {_check_name(name)}"
    return {PAUSED: "paused", MISSING: "not found"}.get(kind, "syncs fail")


def _check_name(name: str) -> str:
    asset, _, check = name.rpartition(" ")
    return f"{check.replace('_', ' ')} ({asset})"


def _digest(messages: Sequence[Message], recovered: int) -> Message:
    title = f"{len(messages) - recovered} problems" + (f", {recovered} solved" if recovered else "")
    lines = [
        f"- {message.title}\n  {message.body.replace(chr(10), chr(10) + '  ')}" for message in messages[:MAX_LISTED]
    ]
    if len(messages) > MAX_LISTED:
        lines.append(f"... and {len(messages) - MAX_LISTED} more: `cliniko-pipeline alerts list` shows all.")
    kind = next((message.kind for message in messages if message.kind != RECOVERED), RECOVERED)
    return Message(kind, title, "\n".join(lines))
