"""Assets on a real instance and database: what a materialization tells, and what an operator's own assets may do."""

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import dagster as dg
import pandas as pd
import pytest

from cliniko_pipeline.definitions import build_definitions
from cliniko_pipeline.orchestration.assets.active_patients import active_patients
from cliniko_pipeline.orchestration.partitions import ORGANIZATIONS, ensure_partitions
from cliniko_pipeline.orchestration.values import TableReference
from cliniko_pipeline.sandbox.account import Account
from cliniko_pipeline_tests.support.hostile_accounts import individual_appointment, patient
from cliniko_pipeline_tests.support.pipelines import PipelineUnderTest, errors_of, materializations_of

AS_OF = datetime(2026, 6, 15, 9, 30, tzinfo=UTC)
RECORDS = {
    "patients": [patient("1", first_name="Xanthippe", last_name="Quillfeather", email="xq@clinic.example")],
    "individual_appointments": [individual_appointment("10", "1", "2026-06-01T09:00:00Z")],
}


@pytest.fixture
def clinic(pipeline: PipelineUnderTest):
    account = Account.from_records("clinic", "au2", "MS0tbm90LWEtc2VjcmV0-au2", RECORDS)
    with pipeline.sandbox([account]) as sandbox:
        pipeline.add_organization("clinic", sandbox, account)
        pipeline.add_contacts([_CONTACT])
        yield account


_CONTACT = {
    "id": "00000000-0000-0000-0000-000000000001",
    "organization_id": "clinic",
    "cliniko_patient_id": "1",
    "name": "Xanthippe Quillfeather",
    "email": "xq@clinic.example",
}


def test_a_materialization_tells_counts_and_a_preview_without_names_and_addresses(pipeline, clinic) -> None:
    result = pipeline.sync("clinic", AS_OF)
    assert result.success, errors_of(result)
    told = materializations_of(result)
    assert {name: each["dagster/row_count"] for name, each in told.items()} == {
        "cliniko/patients": 1,
        "cliniko/appointments": 1,
        "contact_mapping": 1,
        "active_patients": 1,
    }
    for each in told.values():
        assert (each["rows_inserted"] >= 1, each["rows_updated"], each["rows_deleted"]) == (True, 0, 0)
    assert len(told["active_patients"]["preview"].records) == 1
    assert told["cliniko/patients"]["records_read"] == 1
    assert told["cliniko/patients"]["requests"] == 1
    assert {name: told["contact_mapping"][name] for name in ("matched", "ambiguous", "unmatched")} == {
        "matched": 1,
        "ambiguous": 0,
        "unmatched": 0,
    }
    assert {"records_read", "rows_changed", "requests", "seconds_waited"} <= set(told["cliniko/appointments"])
    assert not any("problems" in each for each in told.values())
    shown = repr(told)
    for private in ("Xanthippe", "Quillfeather", "xq@"):
        assert private not in shown
    alone = pipeline.materialize("clinic", "active_patients")
    assert alone.success, errors_of(alone)
    assert list(materializations_of(alone)) == ["active_patients"]


def test_who_has_no_contact_is_listed_by_id(pipeline, clinic) -> None:
    clinic.put("patients", patient("2", first_name="Barnaby", last_name="Nobody"))
    told = materializations_of(pipeline.sync("clinic", AS_OF))
    assert (told["contact_mapping"]["matched"], told["contact_mapping"]["unmatched"]) == (1, 1)
    (listed,) = told["contact_mapping"]["problems"].records
    assert listed.data == {"patient_id": "2", "status": "unmatched", "pass": None, "candidates": None}
    assert "Barnaby" not in repr(told)


def test_every_computed_column_says_which_columns_it_comes_from(pipeline, clinic) -> None:
    columns = {
        spec.key: {column.name for column in spec.metadata["dagster/column_schema"].columns}
        for spec in build_definitions().resolve_all_asset_specs()
    } | {dg.AssetKey("contacts"): {"id", "cliniko_patient_id", "email", "name"}}
    told = materializations_of(pipeline.sync("clinic", AS_OF))
    not_computed = {"organization_id", "created_at", "updated_at", "id", "search_date_from", "search_date_to"}
    for name in ("contact_mapping", "active_patients"):
        by_column = told[name]["dagster/column_lineage"].deps_by_column
        assert set(by_column) == columns[dg.AssetKey(name)] - not_computed
        sources = [source for sources in by_column.values() for source in sources]
        assert [each for each in sources if each.column_name not in columns[each.asset_key]] == []
    assert "dagster/column_lineage" not in told["cliniko/patients"]


def test_a_key_that_cliniko_does_not_know_fails_without_retries(pipeline, clinic) -> None:
    clinic.revoked = True
    result = pipeline.sync("clinic", AS_OF)
    assert not result.success
    told = {
        event.step_failure_data.user_failure_data.description
        for event in result.filter_events(lambda event: event.is_step_failure)
        if event.step_failure_data.user_failure_data
    }
    assert told
    assert all("401" in each for each in told)
    failures = [event.step_failure_data for event in result.filter_events(lambda event: event.is_step_failure)]
    assert {data.error.cls_name for data in failures if data.user_failure_data} <= {
        "Failure",
        "DagsterExecutionHandleOutputError",
    }


def test_an_operators_assets_return_and_take_dataframes_and_references(pipeline, clinic) -> None:
    assert pipeline.sync("clinic", AS_OF).success
    seen: dict[str, Any] = {}

    @dg.asset(partitions_def=ORGANIZATIONS, io_manager_key="postgres", key_prefix="reports")
    def reminders(active_patients: pd.DataFrame) -> pd.DataFrame:
        seen["frame"] = active_patients
        return pd.DataFrame({"contact": active_patients["contact_id"], "visits": [7], "note": ["🏄"]})

    @dg.asset(
        partitions_def=ORGANIZATIONS, io_manager_key="postgres", ins={"rows": dg.AssetIn(["reports", "reminders"])}
    )
    def counted(active_patients: TableReference, rows: pd.DataFrame) -> pd.DataFrame:
        seen["reference"], seen["rows"] = active_patients, rows
        return pd.DataFrame({"count": [len(rows)]})

    result = _materialize(pipeline, "clinic", reminders, counted)
    assert result.success, errors_of(result)
    assert list(seen["frame"]["recent_appointment_count"]) == [1]
    assert "organization_id" not in seen["frame"]
    assert seen["reference"] == TableReference('"public"."active_patients"', "clinic")
    assert list(seen["rows"]["visits"]) == [7]
    assert [row["note"] for row in pipeline.rows("clinic", "reports.reminders")] == ["🏄"]
    assert pipeline.rows("other", "reports.reminders") == []
    assert materializations_of(result)["reports/reminders"]["preview"].startswith("Not previewed")


@pytest.mark.parametrize("value", [None, [1, 2], "text", {"a": 1}])
def test_another_kind_of_value_is_refused_with_what_to_return(pipeline, value) -> None:
    @dg.asset(partitions_def=ORGANIZATIONS, io_manager_key="postgres")
    def wrong() -> Any:
        return value

    result = _materialize(pipeline, "clinic", wrong)
    (error,) = errors_of(result)
    assert f"returned a {type(value).__name__}" in error
    assert "RecordStream, a TableQuery or a pandas DataFrame" in error
    assert [row["status"] for row in pipeline.rows("clinic", "cliniko.sync_runs")] == ["failed"]


def test_an_asset_without_the_partitions_is_refused_with_what_to_do(pipeline) -> None:
    @dg.asset(io_manager_key="postgres")
    def unpartitioned() -> pd.DataFrame:
        return pd.DataFrame({"a": [1]})

    @dg.asset(partitions_def=ORGANIZATIONS, io_manager_key="postgres")
    def whole() -> pd.DataFrame:
        return pd.DataFrame({"a": [1]})

    @dg.asset
    def reader(whole: pd.DataFrame) -> None:
        """Has no partition of its own."""

    result = _materialize(pipeline, None, unpartitioned)
    (error,) = errors_of(result)
    assert "partitions_def" in error
    assert "unpartitioned" in error
    assert "Failure" in error
    assert _materialize(pipeline, "clinic", whole).success
    (error,) = errors_of(_materialize(pipeline, None, whole, reader, selection=[reader]))
    assert "partitions_def" in error


def _materialize(
    pipeline: PipelineUnderTest,
    partition: str | None,
    *assets: Callable[..., Any],
    selection: list[Any] | None = None,
) -> dg.ExecuteInProcessResult:
    ensure_partitions(pipeline.instance, ["clinic"])
    resources = build_definitions(runtime=pipeline.runtime).resources
    return dg.materialize(
        [*assets, active_patients.to_source_asset()] if selection is None else list(assets),
        instance=pipeline.instance,
        partition_key=partition,
        resources=dict(resources or {}),
        selection=selection,
        raise_on_error=False,
    )
