"""Tests of practitioners who left, whom Cliniko keeps in a separate list."""

from cliniko_pipeline_tests.support.deployments import Deployment
from cliniko_pipeline_tests.support.hostile_accounts import patient
from cliniko_pipeline_tests.support.pipelines import errors_of, materializations_of

TIMES = {"created_at": "2026-01-01T00:00:00Z", "updated_at": "2026-01-01T00:00:00Z"}
APPOINTMENT = {
    **TIMES,
    "starts_at": "2026-06-01T00:00:00Z",
    "patient": {"links": {"self": "{base}/patients/1"}},
}


def fill(deployment: Deployment, *practitioners: str) -> None:
    account = deployment.accounts["alpha"]
    account.put("patients", patient("1", "Ada", "Adams"))
    account.put("practitioners", {**TIMES, "id": "7", "display_name": "Dr Here", "active": True})
    account.put("practitioners", {**TIMES, "id": "8", "display_name": "Dr Left", "active": False})
    for number, each in enumerate(practitioners, start=1):
        link = {"links": {"self": f"{{base}}/practitioners/{each}"}}
        account.put("individual_appointments", {**APPOINTMENT, "id": str(number), "practitioner": link})


def names(deployment: Deployment) -> dict[str, str | None]:
    return {row["id"]: row["name"] for row in deployment.pipeline.rows("alpha", "cliniko.practitioners")}


def requests(deployment: Deployment) -> int:
    return len([each for each in deployment.sandbox.counters.recorded if each.record_id == "inactive"])


def test_name_of_a_practitioner_who_left_is_known(deployment: Deployment) -> None:
    """The list of practitioners who left is read only if a name is unknown."""
    fill(deployment, "7")
    assert deployment.sync("alpha").success
    assert (names(deployment), requests(deployment)) == ({"7": "Dr Here"}, 0)
    fill(deployment, "7", "8")
    result = deployment.sync("alpha", full=True)
    assert result.success, errors_of(result)
    assert (names(deployment), requests(deployment)) == ({"7": "Dr Here", "8": "Dr Left"}, 1)
    assert deployment.sync("alpha", full=True).success
    assert requests(deployment) == 1
    assert "problems" not in materializations_of(result)["cliniko/appointments"]


def test_full_sync_finds_names_that_were_not_known(deployment: Deployment) -> None:
    fill(deployment, "8")
    account = deployment.accounts["alpha"]
    account.has_inactive_list = False
    result = deployment.sync("alpha")
    assert result.success, errors_of(result)
    assert names(deployment) == {"7": "Dr Here", "8": None}
    assert "no name in Cliniko" in str(materializations_of(result)["cliniko/appointments"]["problems"])
    account.has_inactive_list = True
    assert deployment.sync("alpha", full=True).success
    assert names(deployment) == {"7": "Dr Here", "8": "Dr Left"}
