"""Tests of the definitions that Dagster loads: assets, jobs, schedules, sensors, resources and checks."""

import os
import subprocess
import sys
from pathlib import Path

import dagster as dg
import pytest
import sqlalchemy as sa
import yaml

from cliniko_pipeline import errors
from cliniko_pipeline.definitions import build_definitions
from cliniko_pipeline.orchestration.runs.failures import failure
from cliniko_pipeline.postgres.engine import Database

ROOT = Path(__file__).parents[2]
SHIPPED = ROOT / "cliniko_pipeline" / "orchestration"
TABLES = {
    "cliniko/patients": "cliniko.patients",
    "cliniko/appointments": "cliniko.appointments",
    "contact_mapping": "cliniko.contact_mapping",
    "active_patients": "public.active_patients",
}
# Names of types in PostgreSQL's catalog, by their names in the column schemas.
TYPES = {"timestamptz": "timestamp with time zone", "timestamp": "timestamp without time zone"}


@pytest.fixture(scope="module")
def definitions() -> dg.Definitions:
    return build_definitions()


@pytest.fixture(scope="module")
def specs(definitions: dg.Definitions) -> dict[str, dg.AssetSpec]:
    return {spec.key.to_user_string(): spec for spec in definitions.resolve_all_asset_specs()}


def test_definitions_have_exactly_these_names(definitions: dg.Definitions, specs: dict[str, dg.AssetSpec]) -> None:
    repository = definitions.get_repository_def()
    assert set(specs) == set(TABLES)
    jobs = {name for name in repository.job_names if not name.startswith("__ASSET_JOB")}
    assert jobs == {"cliniko_sync", "cliniko_counts", "cliniko_prune"}
    schedules = {schedule.name for schedule in repository.schedule_defs}
    assert schedules == {"cliniko_syncs", "cliniko_count_comparisons", "cliniko_prunes"}
    assert {sensor.name for sensor in repository.sensor_defs} == {
        "organization_partitions",
        "lost_runs",
        "failed_runs",
        "stale_organizations",
        "webhook_syncs",
        "webhook_deliveries",
        "alerts",
    }
    assert all(each.default_status == dg.DefaultScheduleStatus.RUNNING for each in repository.schedule_defs)
    assert all(each.default_status == dg.DefaultSensorStatus.RUNNING for each in repository.sensor_defs)
    assert set(repository.get_top_level_resources()) == {"runtime", "cliniko", "postgres"}
    checks = [f"{key.asset_key.to_user_string()} {key.name}" for key in repository.asset_checks_defs_by_key]
    assert sorted(checks) == [
        "active_patients every_active_patient_with_a_contact_is_stored_once",
        "active_patients is_fresh",
        "cliniko/appointments counts_agree_with_cliniko",
        "cliniko/appointments nothing_was_rejected",
        "cliniko/patients counts_agree_with_cliniko",
        "cliniko/patients nothing_was_rejected",
        "contact_mapping matches_are_kept",
        "contact_mapping no_contact_is_used_twice",
        "contact_mapping unmatched_share_is_below_the_limit",
    ]


def test_sync_job_has_all_assets_in_order(definitions: dg.Definitions) -> None:
    job = definitions.resolve_job_def("cliniko_sync")
    assert {key.to_user_string() for key in job.asset_layer.selected_asset_keys} == set(TABLES)
    checks = {"check_rejected_records", "check_contact_mapping", "check_active_patients"}
    steps = {key.replace("/", "__") for key in TABLES} | checks
    assert {node.name for node in job.nodes} == steps, "a comparison of counts would cost a sync requests"
    assert job.executor_def.name == "in_process"
    graph = definitions.resolve_asset_graph()
    extracted = {dg.AssetKey(["cliniko", "patients"]), dg.AssetKey(["cliniko", "appointments"])}
    mapping = dg.AssetKey("contact_mapping")
    assert graph.get(mapping).parent_keys == extracted
    assert graph.get(dg.AssetKey("active_patients")).parent_keys == extracted | {mapping}


def test_assets_are_described_with_the_tables_columns(
    specs: dict[str, dg.AssetSpec], module_database: Database
) -> None:
    query = sa.text(
        "select column_name, data_type from information_schema.columns"
        " where table_schema || '.' || table_name = :table order by ordinal_position"
    )
    for name, spec in specs.items():
        assert spec.partitions_def == dg.DynamicPartitionsDefinition(name="organizations"), name
        assert (spec.owners, spec.metadata["dagster/table_name"]) == (["team:data-engineering"], TABLES[name])
        assert "postgres" in spec.kinds, name
        assert spec.group_name in {"cliniko", "active_patients"}, name
        assert len(spec.description or "") > 40, name
        with module_database.operator() as connection:
            stored = [tuple(row) for row in connection.execute(query, {"table": TABLES[name]})]
        columns = spec.metadata["dagster/column_schema"].columns
        assert [(each.name, TYPES.get(each.type, each.type)) for each in columns] == stored


def test_loading_opens_nothing_and_imports_no_unused_module(tmp_path: Path) -> None:
    """Loading the definitions needs no setting, no database and no home."""
    unused = ("pandas", "numpy", "alembic", "apprise", "aiohttp", "cliniko_pipeline.sandbox", "cliniko_pipeline.cli")
    program = (
        "import sys\n"
        "from cliniko_pipeline.definitions import definitions\n"
        "definitions().get_repository_def()\n"
        f"print(*(set({unused!r}) & sys.modules.keys()))"
    )
    home = tmp_path / "home"
    environ = {name: value for name, value in os.environ.items() if not name.startswith(("DATABASE_URL", "CLINIKO"))}
    environ |= {"DAGSTER_HOME": str(tmp_path), "CLINIKO_PIPELINE_HOME": str(home), "PYTHONPATH": str(ROOT)}
    assert subprocess.check_output([sys.executable, "-c", program], env=environ, text=True).split() == []
    assert not home.exists()


def test_shipped_yaml_allows_one_run_an_organization() -> None:
    workspace = (SHIPPED / "workspace.yaml").read_text()
    assert workspace == (ROOT / "workspace.yaml").read_text()
    (location,) = yaml.safe_load(workspace)["load_from"]
    names = {"module_name": "cliniko_pipeline.definitions", "location_name": "cliniko_pipeline"}
    assert location["python_module"] == names
    shipped = yaml.safe_load((SHIPPED / "dagster.yaml").read_text())
    assert shipped["storage"]["custom"]["config"]["postgres_url"] == {"env": "CLINIKO_DAGSTER_DATABASE_URL"}
    assert shipped["telemetry"] == {"enabled": False}
    assert shipped["concurrency"]["runs"]["tag_concurrency_limits"] == [
        {"key": "dagster/partition", "value": {"applyLimitPerUniqueValue": True}, "limit": 1}
    ]
    assert shipped["compute_logs"]["class"] == "NoOpComputeLogManager"


def test_shipped_yaml_bounds_all_ticks() -> None:
    """Dagster keeps the ticks of a status for ever if the status is left out."""
    retention = yaml.safe_load((SHIPPED / "dagster.yaml").read_text())["retention"]
    assert set(retention) == {"schedule", "sensor", "auto_materialize"}
    for kept in retention.values():
        assert set(kept["purge_after_days"]) == {"started", "skipped", "success", "failure"}
        assert all(0 < days <= 30 for days in kept["purge_after_days"].values())


def test_transient_failure_alone_allows_retries() -> None:
    for transient in (errors.ClinikoUnavailableError, errors.RateLimitedError, errors.DatabaseUnavailableError):
        assert failure(transient("down")).allow_retries
    for error in (errors.AuthenticationError("401"), errors.SettingsError("wrong"), errors.DataError("odd")):
        made = failure(error)
        assert (made.allow_retries, made.description) == (False, str(error))
        assert made.metadata["error"].value == type(error).__name__
