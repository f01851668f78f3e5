"""Tests of refusals by Cliniko (401, 403), which pass or which pause the organization."""

from datetime import UTC, datetime, timedelta

import pytest

from cliniko_pipeline.credentials.vault import ClinikoCredentials
from cliniko_pipeline.postgres.operator_tables import organizations, scheduling
from cliniko_pipeline.sandbox.accounts.account import Account
from cliniko_pipeline.sandbox.faults import BrokenPage, Faults
from cliniko_pipeline_tests.support.deployments import Deployment
from cliniko_pipeline_tests.support.hostile_accounts import patient
from cliniko_pipeline_tests.support.pipelines import errors_of

MINUTE = timedelta(minutes=1)


def everything_refused(status: int) -> Faults:
    return Faults(server_error_rate=1.0, server_error_statuses=(status,))


def retry_in(deployment: Deployment, name: str) -> timedelta:
    (wait,) = deployment.execute(
        "select retry_at - now() from cliniko.scheduling where organization_id = :name", name=name
    )
    return wait


@pytest.mark.parametrize("status", [pytest.param(401, marks=pytest.mark.slow), 403])
def test_refusal_of_everybody_for_a_while_pauses_nobody(deployment: Deployment, status: int) -> None:
    names = ("alpha", "beta")
    assert all(deployment.sync(name).success for name in names)
    before = {name: deployment.pipeline.contents(name) for name in names}
    deployment.sandbox.faults = everything_refused(status)
    for wait in (1, 5):
        for name in names:
            result = deployment.sync(name)
            assert not result.success
            assert all("only if Cliniko refuses a later attempt" in error for error in errors_of(result))
            assert deployment.scheduling(name).paused_at is None
            assert timedelta(0) < wait * MINUTE - retry_in(deployment, name) < MINUTE
    assert {name: deployment.pipeline.contents(name) for name in names} == before
    deployment.sandbox.faults = Faults()
    deployment.let_refusals_age()
    assert set(deployment.tick(datetime.now(UTC) + 6 * MINUTE)) == set(names)
    for name in names:
        assert deployment.sync(name).success
        assert deployment.scheduling(name).failures == 0

    # The sync has succeeded, so a later refusal is a first refusal again.
    deployment.sandbox.faults = everything_refused(status)
    assert not deployment.sync("alpha").success
    assert deployment.scheduling("alpha").paused_at is None


@pytest.mark.parametrize("status", [pytest.param(401, marks=pytest.mark.slow), 403])
def test_page_refused_in_passing_does_not_fail_a_sync(deployment: Deployment, status: int) -> None:
    numbers = [str(number) for number in range(1, 301)]
    deployment.accounts["alpha"].fill("patients", (patient(each, "Ada", "Adams") for each in numbers))
    deployment.sandbox.faults = Faults(broken_pages=(BrokenPage("patients", 2, status=status, times=3),))
    result = deployment.sync("alpha")
    assert result.success, errors_of(result)
    assert deployment.sandbox.counters.requests(status=status) == 3
    assert sorted(row["id"] for row in deployment.pipeline.rows("alpha", "cliniko.patients")) == sorted(numbers)


def test_lasting_lack_of_a_right_pauses_after_a_second_run(deployment: Deployment) -> None:
    """In both runs, Cliniko accepts the requests for other resources."""
    deployment.accounts["alpha"].forbidden_resources.add("individual_appointments")
    assert not deployment.sync("alpha").success
    assert deployment.scheduling("alpha").paused_at is None
    deployment.let_refusals_age()
    assert not deployment.sync("alpha").success
    paused = deployment.scheduling("alpha")
    assert paused.paused_at is not None
    assert "403" in (paused.pause_reason or "")
    assert paused.retry_at is None


def test_second_refusal_in_the_same_run_confirms_nothing(deployment: Deployment) -> None:
    """A second refusal may come minutes after the first in the same run, for patients and for appointments."""

    def confirms(run_id: str) -> bool:
        with deployment.database.operator() as connection:
            digest = scheduling.credentials_digest(connection, "alpha")
            return scheduling.note_refusal(connection, "alpha", run_id=run_id, credentials=digest)

    assert not confirms("first")
    assert not confirms("second"), "it is too early"
    deployment.let_refusals_age()
    assert not confirms("first")
    assert confirms("second")


def test_new_key_or_enabling_forgets_a_refusal(deployment: Deployment) -> None:
    account = deployment.accounts["alpha"]
    account.revoked = True
    assert not deployment.sync("alpha").success
    deployment.let_refusals_age()
    replaced = Account("replaced", "au4", "another-key-au4")
    replaced.revoked = True
    deployment.sandbox.add(replaced)
    new = ClinikoCredentials(replaced.api_key, None, deployment.sandbox.base_url(replaced))
    with deployment.database.operator() as connection:
        encrypted = deployment.pipeline.runtime.vault.encrypt(new)
        organizations.save(connection, "alpha", "Alpha", encrypted, validated=False)
    assert "alpha" in deployment.tick()
    assert not deployment.sync("alpha").success
    assert deployment.scheduling("alpha").paused_at is None

    # Another encryption of the same key does not reset the refusals.
    deployment.let_refusals_age()
    with deployment.database.operator() as connection:
        encrypted = deployment.pipeline.runtime.vault.encrypt(new)
        organizations.replace_encrypted(connection, "alpha", encrypted)
    assert not deployment.sync("alpha").success
    assert deployment.scheduling("alpha").paused_at is not None
