"""The command `explain`, its errors and its JSON output."""

import json
import re
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import click

from cliniko_pipeline.cli.explain.match_texts import pass_text
from cliniko_pipeline.cli.explain.tables import show
from cliniko_pipeline.cli.explain.texts import listing, number_of, problems, verdict
from cliniko_pipeline.cli.session import session
from cliniko_pipeline.cli.status import output_console
from cliniko_pipeline.errors import ArgumentError, DataError
from cliniko_pipeline.instants import parse_instant
from cliniko_pipeline.postgres.operator_tables import organizations
from cliniko_pipeline.postgres.reads.explanations import explanation
from cliniko_pipeline.postgres.reads.explanations.explanation import Explanation, UnknownPatient
from cliniko_pipeline.runtime import Runtime


@click.command()
@click.argument("organization_id", metavar="ORG")
@click.argument("patient_id", metavar="PATIENT_ID")
@click.option(
    "--as-of", metavar="INSTANT", help="Explain activity at this instant (2026-01-31T09:30:00Z), not at the last sync."
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON with all attendances.")
def explain(organization_id: str, patient_id: str, *, as_of: str | None, as_json: bool) -> None:
    """Explain why a patient is active or not, and which contact matches, from stored data."""
    if not re.fullmatch("[0-9]{1,20}", patient_id):
        raise click.BadParameter("must be Cliniko's id of the patient: digits.", param_hint="PATIENT_ID")
    instant = None if as_of is None else parse_instant(as_of)
    with session() as runtime:
        found = _explanation(runtime, organization_id, patient_id.lstrip("0") or "0", instant)
    if as_json:
        click.echo(json.dumps(_as_json(organization_id, found), indent=2, default=_as_text))
    else:
        show(output_console(), found)


def _explanation(runtime: Runtime, organization_id: str, patient_id: str, as_of: datetime | None) -> Explanation:
    """Return the explanation. Raise OrganizationUnknownError, ArgumentError or DataError if there is none."""
    with runtime.database.organization(organization_id) as connection:
        found = explanation.explain(connection, patient_id, runtime.rules, as_of)
        if found is not None:
            return found
        unknown = explanation.unknown_patient(connection, patient_id)
    with runtime.database.operator() as connection:
        organizations.organization(connection, organization_id)
    raise _unknown_patient_error(organization_id, patient_id, unknown)


def _unknown_patient_error(organization_id: str, patient_id: str, unknown: UnknownPatient) -> DataError | ArgumentError:
    patient = f"Patient {patient_id} of organization '{organization_id}'"
    if unknown.rejected_because is not None:
        return DataError(
            f"{patient} is not stored: its record was rejected ({unknown.rejected_because}). Correct it in Cliniko,"
            " then sync again."
        )
    if unknown.mentions:
        return ArgumentError(
            f"{patient} has no record, though {number_of(unknown.mentions, 'other record')} refer to it. Run"
            f" `cliniko-pipeline sync {organization_id} --full` to read all patients."
        )
    return ArgumentError(
        f"{patient} is not stored. The id is the number at the end of the patient's address in Cliniko. Run"
        f" `cliniko-pipeline sync {organization_id}` if the patient is new."
    )


def _as_json(organization_id: str, found: Explanation) -> dict[str, Any]:
    match = asdict(found.match)
    match["passes"] = [{**asdict(tried), "explanation": pass_text(tried, found.person)} for tried in found.match.passes]
    return {
        "organization_id": organization_id,
        "patient_id": found.patient_id,
        "is_active": found.is_active,
        "verdict": verdict(found),
        "active_patients": {
            "listing": found.listing,
            "explanation": listing(found),
            "row": None if found.row is None else asdict(found.row),
        },
        "problems": problems(found.state),
        "state": asdict(found.state),
        "as_of": {
            "instant": found.as_of,
            "source": found.as_of_source,
            "window_from": found.rules.window_start(found.as_of),
            "activity_window_days": found.rules.activity_window.days,
            "count_no_shows": found.rules.count_no_shows,
        },
        "person": {**asdict(found.person), "state": found.person.state},
        "counts": asdict(found.counts),
        "match": match,
        "attendances": [
            asdict(attendance) | {"left_out": [{"reason": reason, "at": at} for reason, at in attendance.left_out]}
            for attendance in found.attendances
        ],
    }


def _as_text(value: object) -> str:
    if isinstance(value, datetime):
        return value.astimezone(UTC).isoformat().replace("+00:00", "Z")
    if isinstance(value, UUID):
        return str(value)
    raise TypeError(type(value).__name__)
