"""What Dagster is given: everything there is by name, and what each asset says of itself."""

import os
import subprocess
import sys
from pathlib import Path

import dagster as dg
import pytest
import sqlalchemy as sa
import yaml

from cliniko_pipeline.definitions import build_definitions
from cliniko_pipeline.errors import (
    AuthenticationError,
    ClinikoUnavailableError,
    DatabaseUnavailableError,
    DataError,
    RateLimitedError,
    SettingsError,
)
from cliniko_pipeline.orchestration.failures import failure

ROOT = Path(__file__).parents[2]
SHIPPED = ROOT / "cliniko_pipeline" / "orchestration"
TABLES = {
    "cliniko/patients": "cliniko.patients",
    "cliniko/appointments": "cliniko.appointments",
    "contact_mapping": "cliniko.contact_mapping",
    "active_patients": "public.active_patients",
}
# As PostgreSQL's catalog calls what the schemas call by its usual name.
TYPES = {"timestamptz": "timestamp with time zone", "timestamp": "timestamp without time zone"}


@pytest.fixture(scope="module")
def repository() -> dg.RepositoryDefinition:
    return build_definitions().get_repository_def()


def specs() -> list[dg.AssetSpec]:
    """In an order of their own: the tests are collected in several processes."""
    return sorted(build_definitions().resolve_all_asset_specs(), key=lambda spec: spec.key)


def test_there_is_exactly_this(repository: dg.RepositoryDefinition) -> None:
    assert {spec.key.to_user_string() for spec in specs()} == set(TABLES)
    jobs = {name for name in repository.job_names if not name.startswith("__ASSET_JOB")}
    assert jobs == {"cliniko_sync", "cliniko_counts"}
    assert {schedule.name for schedule in repository.schedule_defs} == {"cliniko_syncs", "cliniko_count_comparisons"}
    assert {sensor.name for sensor in repository.sensor_defs} == {
        "organization_partitions",
        "lost_runs",
        "failed_runs",
        "stale_organizations",
        "webhook_syncs",
        "webhook_deliveries",
        "alerts",
    }
    running = [
        *(schedule.default_status == dg.DefaultScheduleStatus.RUNNING for schedule in repository.schedule_defs),
        *(sensor.default_status == dg.DefaultSensorStatus.RUNNING for sensor in repository.sensor_defs),
    ]
    assert all(running), "the operator need not start what keeps everything going"
    assert set(repository.get_top_level_resources()) == {"runtime", "cliniko", "postgres"}
    checks = {(key.asset_key.to_user_string(), key.name) for key in repository.asset_checks_defs_by_key}
    assert checks == {
        ("cliniko/patients", "counts_agree_with_cliniko"),
        ("cliniko/appointments", "counts_agree_with_cliniko"),
        ("cliniko/patients", "nothing_was_rejected"),
        ("cliniko/appointments", "nothing_was_rejected"),
        ("contact_mapping", "no_contact_is_used_twice"),
        ("contact_mapping", "unmatched_share_is_below_the_limit"),
        ("active_patients", "every_active_patient_with_a_contact_is_stored_once"),
        ("active_patients", "is_not_older_than_promised"),
    }


def test_the_main_job_makes_all_assets_in_order() -> None:
    definitions = build_definitions()
    job = definitions.resolve_job_def("cliniko_sync")
    assert {key.to_user_string() for key in job.asset_layer.selected_asset_keys} == set(TABLES)
    claims = {"claims_of_what_was_read", "claims_of_contact_mapping", "claims_of_active_patients"}
    steps = {key.replace("/", "__") for key in TABLES} | claims
    assert {node.name for node in job.nodes} == steps, "to compare counts costs requests that a sync must not take"
    assert job.executor_def.name == "in_process"
    graph = definitions.resolve_asset_graph()
    extracted = {dg.AssetKey(["cliniko", "patients"]), dg.AssetKey(["cliniko", "appointments"])}
    mapping = dg.AssetKey("contact_mapping")
    assert graph.get(mapping).parent_keys == extracted
    assert graph.get(dg.AssetKey("active_patients")).parent_keys == extracted | {mapping}


@pytest.mark.parametrize("spec", specs(), ids=lambda spec: spec.key.to_user_string())
def test_every_asset_is_partitioned_owned_described_and_stored_in_postgres(spec: dg.AssetSpec) -> None:
    assert spec.partitions_def == dg.DynamicPartitionsDefinition(name="organizations")
    assert spec.owners == ["team:data-engineering"]
    assert "postgres" in spec.kinds
    assert spec.group_name in {"cliniko", "active_patients"}
    assert len(spec.description or "") > 40
    assert spec.metadata["dagster/table_name"] == TABLES[spec.key.to_user_string()]


@pytest.mark.parametrize("spec", specs(), ids=lambda spec: spec.key.to_user_string())
def test_the_column_schemas_equal_the_databases_columns(spec: dg.AssetSpec, database) -> None:
    schema, _, table = TABLES[spec.key.to_user_string()].partition(".")
    with database.operator() as connection:
        rows = connection.execute(
            sa.text(
                "select column_name, data_type from information_schema.columns"
                " where table_schema = :schema and table_name = :table order by ordinal_position"
            ),
            {"schema": schema, "table": table},
        )
        stored = [(row.column_name, row.data_type) for row in rows]
    told = [(each.name, TYPES.get(each.type, each.type)) for each in spec.metadata["dagster/column_schema"].columns]
    assert told == stored


def test_both_workspace_files_are_the_same_and_load(tmp_path: Path) -> None:
    workspace = ROOT / "workspace.yaml"
    assert workspace.read_text() == (SHIPPED / "workspace.yaml").read_text()
    (location,) = yaml.safe_load(workspace.read_text())["load_from"]
    assert location["python_module"] == {
        "module_name": "cliniko_pipeline.definitions",
        "location_name": "cliniko_pipeline",
    }
    # Nothing is set and no database is there: loading may open neither.
    environ = {name: value for name, value in os.environ.items() if not name.startswith(("DATABASE_URL", "CLINIKO"))}
    done = subprocess.run(
        [sys.executable, "-m", "dagster", "definitions", "validate", "-w", str(workspace), "--log-level", "warning"],
        env=environ | {"DAGSTER_HOME": str(tmp_path), "CLINIKO_PIPELINE_HOME": str(tmp_path / "home")},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert not (tmp_path / "home").exists()


def test_the_shipped_dagster_yaml_keeps_one_run_an_organization_and_tells_nobody() -> None:
    shipped = yaml.safe_load((SHIPPED / "dagster.yaml").read_text())
    assert shipped["storage"]["custom"]["config"]["postgres_url"] == {"env": "CLINIKO_DAGSTER_DATABASE_URL"}
    assert shipped["telemetry"] == {"enabled": False}
    assert shipped["concurrency"]["runs"]["tag_concurrency_limits"] == [
        {"key": "dagster/partition", "value": {"applyLimitPerUniqueValue": True}, "limit": 1}
    ]
    assert shipped["compute_logs"]["class"] == "NoOpComputeLogManager"


@pytest.mark.parametrize(
    ("error", "retries"),
    [
        (ClinikoUnavailableError("down"), True),
        (RateLimitedError("later"), True),
        (DatabaseUnavailableError("down"), True),
        (AuthenticationError("401"), False),
        (SettingsError("wrong"), False),
        (DataError("odd"), False),
    ],
)
def test_a_failure_allows_retries_only_where_they_may_help(error, retries) -> None:
    made = failure(error)
    assert made.allow_retries is retries
    assert made.description == str(error)
    assert made.metadata["error"].value == type(error).__name__


def test_a_runs_process_loads_nothing_that_a_sync_does_not_use() -> None:
    unused = ("pandas", "numpy", "alembic", "apprise", "aiohttp", "cliniko_pipeline.sandbox", "cliniko_pipeline.cli")
    program = (
        "import sys\n"
        "from cliniko_pipeline.definitions import build_definitions\n"
        "build_definitions().get_repository_def()\n"
        f"print(*(set({unused!r}) & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.split() == []
