"""`cliniko-pipeline tokens`: tokens of the HTTP API, and refused requests."""

from datetime import UTC, datetime, timedelta

from cliniko_pipeline.postgres.operator_tables import api_tokens
from cliniko_pipeline.postgres.operator_tables.api_tokens import Refusal
from cliniko_pipeline_tests.support.clinics import Clinics
from cliniko_pipeline_tests.support.processes import CommandLine, assert_refused


def test_created_token_is_printed_once_and_revoked(command: CommandLine, clinics: Clinics) -> None:
    clinics.open(["alpha"])
    before = datetime.now(UTC)
    made = command(
        "tokens", "create", "--name", "dash[board]", "--scope", "sync", "--organization", "alpha", "--days", "2"
    )
    assert made.returncode == 0, made.stderr
    text = made.stdout.strip()
    with clinics.database.operator() as connection:
        token = api_tokens.find(connection, text)
    assert token is not None
    assert (token.scopes, token.organizations) == ({"sync"}, {"alpha"})
    assert token.expires_at is not None
    assert before < token.expires_at - timedelta(days=2) < datetime.now(UTC)
    listed = command("tokens", "list").stdout
    assert all(word in listed for word in (token.id, "dash[board]", "valid", "sync", "alpha"))
    assert text not in listed + made.stderr
    assert command("tokens", "revoke", token.id).returncode == 0
    assert "revoked" in command("tokens", "list").stdout


def test_token_needs_known_organizations_and_scopes(command: CommandLine, clinics: Clinics) -> None:
    clinics.open(["alpha"])
    for arguments, code, words in (
        ([], 2, "Give either --organization ID"),
        (["--organization", "alpha", "--all-organizations"], 2, "Give either --organization ID"),
        (["--organization", "nobody"], 1, "There is no organization 'nobody'"),
        (["--all-organizations", "--days", "0"], 2, "--days"),
        (["--all-organizations", "--scope", "write"], 2, "--scope"),
    ):
        refused = command("tokens", "create", "--name", "x", *arguments)
        assert (refused.returncode, refused.stdout) == (code, "")
        assert words in refused.stderr
    assert "No tokens yet" in command("tokens", "list").stdout
    assert_refused(command("tokens", "revoke", "0123456789ab"), "tokens list")


def test_refused_requests_are_listed_by_the_minute(command: CommandLine, clinics: Clinics) -> None:
    assert "No request was refused" in command("tokens", "refusals").stdout
    refusal = Refusal("unknown token", "", "203.0.113.9", "GET", "/v1/organizations", "")
    with clinics.database.operator() as connection:
        # One transaction stores all refusals, so that they are in the same minute.
        for _ in range(3):
            api_tokens.note_refusal(connection, refusal)
    shown = command("tokens", "refusals").stdout
    assert all(word in shown for word in ("unknown token", "203.0.113.9", "GET /v1/organizations"))
    with clinics.database.operator() as connection:
        assert [each.attempts for each in api_tokens.refusals(connection, 10)] == [3]
