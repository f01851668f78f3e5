"""Tests of syncs while Cliniko's responses have no Date, or a Date that cannot be right."""

import pytest

from cliniko_pipeline.sandbox.faults import Faults
from cliniko_pipeline_tests.support.deployments import Deployment
from cliniko_pipeline_tests.support.hostile_accounts import patient
from cliniko_pipeline_tests.support.pipelines import errors_of

NUMBERS = [str(number) for number in range(1, 251)]


def stored(deployment: Deployment) -> list[str]:
    return sorted((row["id"] for row in deployment.pipeline.rows("alpha", "cliniko.patients")), key=int)


@pytest.fixture
def variables() -> dict[str, str]:
    return {"CLINIKO_MAX_CLOCK_SKEW_MINUTES": "60"}


@pytest.mark.parametrize(
    "date",
    ["Thu, 01 Jan 1970 00:00:00 GMT", "Thu, 31 Dec 2099 23:59:59 GMT", "Fri, 31 Dec 9999 23:59:59 GMT"],
)
def test_date_that_cannot_be_right_fails_the_sync_and_loses_nothing(deployment: Deployment, date: str) -> None:
    account = deployment.accounts["alpha"]
    account.fill("patients", (patient(each, "Ada", "Adams") for each in NUMBERS[:100]))
    assert deployment.sync("alpha").success
    before = deployment.pipeline.contents("alpha")
    account.fill("patients", (patient(each, "Ada", "Adams") for each in NUMBERS))
    deployment.sandbox.faults = Faults(date=date)
    for _ in range(2):
        result = deployment.sync("alpha", full=True)
        assert not result.success
        assert any("clock" in error for error in errors_of(result))
        assert stored(deployment) == NUMBERS[:100]
    after = deployment.pipeline.contents("alpha")
    assert after["public.active_patients"] == before["public.active_patients"]
    assert after["cliniko.contact_mapping"] == before["cliniko.contact_mapping"]
    deployment.sandbox.faults = Faults()
    assert deployment.sync("alpha").success
    assert stored(deployment) == NUMBERS


def test_sync_without_a_date_is_complete(deployment: Deployment) -> None:
    account = deployment.accounts["alpha"]
    account.fill("patients", (patient(each, "Ada", "Adams") for each in NUMBERS[:240]))
    deployment.sandbox.faults = Faults(date="")
    assert deployment.sync("alpha").success
    assert stored(deployment) == NUMBERS[:240]
    account.fill("patients", (patient(each, "Ada", "Adams") for each in NUMBERS))
    assert deployment.sync("alpha").success
    assert stored(deployment) == NUMBERS
