"""Tests of assets on a real instance and database, with metadata of materializations and an operator's own assets."""

from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import dagster as dg
import pandas as pd
import pytest

from cliniko_pipeline.definitions import build_definitions
from cliniko_pipeline.orchestration.assets.active_patients import active_patients
from cliniko_pipeline.orchestration.assets.values import TableReference
from cliniko_pipeline.orchestration.partitions import ORGANIZATIONS, ensure_partitions
from cliniko_pipeline.sandbox.accounts.account import Account
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
        contact = {"id": UUID(int=1), "organization_id": "clinic", "cliniko_patient_id": "1", "name": "X. Quillfeather"}
        pipeline.add_contacts([contact])
        yield account


def test_materialization_has_counts_and_no_personal_data(pipeline, clinic) -> None:
    result = pipeline.sync("clinic", AS_OF)
    assert result.success, errors_of(result)
    metadata = materializations_of(result)
    assert set(metadata) == {"cliniko/patients", "cliniko/appointments", "contact_mapping", "active_patients"}
    for each in metadata.values():
        assert (each["dagster/row_count"], each["rows_updated"], each["rows_deleted"]) == (1, 0, 0)
        assert each["rows_inserted"] >= 1
        assert "problems" not in each
    assert metadata["cliniko/patients"]["records_read"] == metadata["cliniko/patients"]["requests"] == 1
    assert {"records_read", "rows_changed", "requests", "seconds_waited"} <= set(metadata["cliniko/appointments"])
    mapping = [metadata["contact_mapping"][name] for name in ("matched", "ambiguous", "unmatched")]
    assert mapping == [1, 0, 0]
    private = ("Xanthippe", "Quillfeather", "xq@", str(UUID(int=1)), "preview", "last_appointment_date=")
    assert not [each for each in private if each in repr(metadata)]

    clinic.put("patients", patient("2", first_name="Barnaby", last_name="Nobody"))
    metadata = materializations_of(pipeline.sync("clinic", AS_OF, full=True))
    (listed,) = metadata["contact_mapping"]["problems"].records
    assert listed.data == {"status": "unmatched", "pass": None, "patients": 1}
    assert "Barnaby" not in repr(metadata)
    alone = pipeline.materialize("clinic", "active_patients")
    assert alone.success, errors_of(alone)
    assert list(materializations_of(alone)) == ["active_patients"]


def test_computed_columns_have_their_lineage() -> None:
    specs = build_definitions().resolve_all_asset_specs()
    metadata = {spec.key.to_user_string(): spec.metadata for spec in specs}
    columns = {
        spec.key: {column.name for column in spec.metadata["dagster/column_schema"].columns} for spec in specs
    } | {dg.AssetKey("contacts"): {"id", "cliniko_patient_id", "email", "name"}}
    not_computed = {"organization_id", "created_at", "updated_at", "id", "search_date_from", "search_date_to"}
    for name in ("contact_mapping", "active_patients"):
        by_column = metadata[name]["dagster/column_lineage"].deps_by_column
        assert set(by_column) == columns[dg.AssetKey(name)] - not_computed
        for source in (source for sources in by_column.values() for source in sources):
            assert source.column_name in columns[source.asset_key]
    assert "dagster/column_lineage" not in metadata["cliniko/patients"]


def test_operators_asset_takes_frames_and_references(pipeline, clinic) -> None:
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


def test_asset_of_another_type_or_without_partitions_is_refused(pipeline) -> None:
    @dg.asset(partitions_def=ORGANIZATIONS, io_manager_key="postgres")
    def wrong() -> list[int]:
        return [1, 2]

    @dg.asset(io_manager_key="postgres")
    def unpartitioned() -> pd.DataFrame:
        return pd.DataFrame({"a": [1]})

    @dg.asset
    def reader(active_patients: pd.DataFrame) -> None:
        """Read the table without partitions."""

    (error,) = errors_of(_materialize(pipeline, "clinic", wrong))
    assert "returned a list" in error
    assert "RecordStream, a TableQuery or a pandas DataFrame" in error
    assert [row["status"] for row in pipeline.rows("clinic", "cliniko.sync_runs")] == ["failed"]
    for asset, named in ((unpartitioned, "unpartitioned"), (reader, "active_patients")):
        (error,) = errors_of(_materialize(pipeline, None, asset))
        assert "partitions_def" in error
        assert named in error


def _materialize(pipeline: PipelineUnderTest, partition: str | None, *assets: Any) -> dg.ExecuteInProcessResult:
    ensure_partitions(pipeline.instance, ["clinic"])
    return dg.materialize(
        [*assets, active_patients.to_source_asset()],
        instance=pipeline.instance,
        partition_key=partition,
        resources=build_definitions(runtime=pipeline.runtime).resources,
        raise_on_error=False,
    )
