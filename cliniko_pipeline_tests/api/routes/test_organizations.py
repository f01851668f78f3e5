"""Tests of the routes of organizations, with disabled organizations and people without a contact."""

import httpx

from cliniko_pipeline_tests.support.services import ServiceAlone, add_organization, every_page


def test_disabled_organization_is_read_and_not_synced(service: ServiceAlone) -> None:
    add_organization(service.database, "disabled")
    with service.database.operator() as connection:
        connection.exec_driver_sql(
            "update public.api_credentials set is_active = false where organization_id = 'disabled'"
        )
    with service.client("read", "sync") as caller:
        assert caller.get("/v1/organizations/disabled").json()["is_active"] is False
        assert caller.post("/v1/organizations/disabled/syncs").status_code == 409


def test_people_without_contact_are_paged_by_status(service: ServiceAlone, reader: httpx.Client) -> None:
    with service.database.organization("alpha") as connection:
        connection.exec_driver_sql(
            "insert into cliniko.contact_mapping (organization_id, patient_id, status, candidate_count)"
            " select 'alpha', n::text, case when n %% 3 = 0 then 'ambiguous' else 'unmatched' end,"
            " case when n %% 3 = 0 then 2 end from generate_series(1, 25) as n"
        )
    path = "/v1/organizations/alpha/people-without-contact"
    unmatched = [row for page in every_page(reader, path, {"limit": 4}) for row in page]
    assert [int(row["patient_id"]) for row in unmatched] == [n for n in range(1, 26) if n % 3]
    ambiguous = reader.get(path, params={"status": "ambiguous"}).json()["items"]
    assert [(int(row["patient_id"]), row["candidate_count"]) for row in ambiguous] == [(n, 2) for n in range(3, 26, 3)]
    assert reader.get(path.replace("alpha", "beta")).json()["items"] == []
