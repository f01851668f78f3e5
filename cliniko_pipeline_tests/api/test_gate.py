"""Tests of tokens: their limits, and the stored rows about their use and about refusals."""

from contextlib import ExitStack

import httpx
import pytest

from cliniko_pipeline.api import gate as authentication
from cliniko_pipeline.api.problems import ProblemError
from cliniko_pipeline.postgres.operator_tables import api_tokens, organizations
from cliniko_pipeline_tests.support.services import ServiceAlone, add_organization, client, token


def test_token_sees_its_own_organizations_only(service: ServiceAlone) -> None:
    with service.client("read", organizations=["alpha"]) as caller:
        assert [row["id"] for row in caller.get("/v1/organizations").json()["items"]] == ["alpha"]
    with service.client("admin", organizations=["alpha"]) as caller:
        metrics = caller.get("/metrics").text
    assert 'cliniko_pending_webhooks{organization="alpha"} 0.0' in metrics
    assert 'cliniko_failures_in_a_row{organization="alpha"}' in metrics
    assert "beta" not in metrics


def test_request_limit_is_per_token(service: ServiceAlone) -> None:
    with service.client(requests_per_minute=5) as caller:
        answers = [caller.get("/v1/organizations") for _ in range(9)]
    assert [answer.status_code for answer in answers] == [200] * 5 + [429] * 4
    assert 0 < int(answers[-1].headers["retry-after"]) <= 60
    with service.client(requests_per_minute=5) as another:
        assert another.get("/v1/organizations").status_code == 200


def test_token_use_is_stored_without_its_text(service: ServiceAlone) -> None:
    text = token(service.database)
    with client(service.url, text) as caller:
        caller.get("/v1/organizations")
    with service.database.operator() as connection:
        (found,) = (row for row in api_tokens.tokens(connection) if row.id == text.split("_")[1])
        rows = connection.exec_driver_sql("select string_agg(t::text, ' ') from cliniko.api_tokens as t").scalar_one()
    assert found.last_used_at is not None
    assert found.id in rows
    assert text.rpartition("_")[2] not in rows
    assert text not in repr(found)


@pytest.mark.parametrize("header", ["", "Bearer", "Basic YTpi", "bearer x", "Bearer ~", "Bearer " + "a" * 5000])
def test_stored_refusal_is_short_and_printable(service: ServiceAlone, header: str) -> None:
    with service.database.operator() as connection:
        connection.exec_driver_sql("delete from cliniko.api_refusals")
    with service.client(organizations=["alpha"]) as caller:
        caller.get("/v1/organizations/%1b%5D0;title%07%00" + "a" * 5000)
    headers = {"Authorization": header, "X-Forwarded-For": "a" * 5000}
    assert httpx.get(f"{service.url}/v1/organizations", headers=headers, trust_env=False).status_code == 401
    with service.database.operator() as connection:
        stored = api_tokens.refusals(connection, 10)
    assert len(stored) == 2
    for row in stored:
        assert (row.refusal.organization_id, row.refusal.address) == ("", "127.0.0.1")


def test_refusals_take_a_bounded_number_of_rows(service: ServiceAlone, monkeypatch: pytest.MonkeyPatch) -> None:
    """Callers may vary the organization ids and addresses, and may exceed the limit of requests."""
    monkeypatch.setattr(authentication, "MAX_REFUSALS_PER_MINUTE", 3)
    with service.database.operator() as connection:
        connection.exec_driver_sql("delete from cliniko.api_refusals")
    with service.client(organizations=["alpha"], requests_per_minute=20) as caller:
        named = [caller.get(f"/v1/organizations/{name}").status_code for name in ("beta", *map(str, range(24)))]
    assert (named.count(404), named.count(429)) == (20, 5)
    for number in range(10):
        headers = {"X-Forwarded-For": f"203.0.113.{number}"}
        httpx.get(f"{service.url}/v1/organizations", headers=headers, trust_env=False)
    for _ in range(3):
        with service.client("sync", organizations=["alpha"]) as caller:
            assert caller.get("/v1/organizations").status_code == 403
    with service.database.operator() as connection:
        stored = api_tokens.refusals(connection, 100)
    # The number is smaller if this process has stored refusals of other tests in the same minute.
    assert len(stored) <= 4
    assert sum(row.attempts for row in stored) == 20 + 10 + 3
    assert {row.refusal.organization_id for row in stored} <= {"", "beta"}
    assert "others" in {row.refusal.reason for row in stored}


def test_followed_syncs_are_limited_per_token(service: ServiceAlone) -> None:
    gate = authentication.Gate(service.runtime)
    one, other = (authentication.Principal(name, frozenset({"read"}), None) for name in ("one", "other"))
    with ExitStack() as followed:
        for _ in range(authentication.MAX_FOLLOWERS):
            followed.enter_context(gate.hold_follower_slot(one))
        with pytest.raises(ProblemError) as refused, gate.hold_follower_slot(one):
            pass
        assert refused.value.status == 429
        with gate.hold_follower_slot(other):
            pass
    with gate.hold_follower_slot(one):
        pass


def test_token_does_not_open_a_later_organization_of_the_same_id(service: ServiceAlone) -> None:
    add_organization(service.database, "removed")
    with service.client(organizations=["removed", "beta"]) as caller:
        assert caller.get("/v1/organizations/removed").status_code == 200
        organizations.remove(service.database, "removed")
        add_organization(service.database, "removed")
        assert caller.get("/v1/organizations/removed").status_code == 404
        assert caller.get("/v1/organizations/beta").status_code == 200
