"""Tests that `doctor` and `status` report schedules and sensors that somebody has stopped."""

import json
from pathlib import Path

import dagster as dg
import pytest
from dagster._core.remote_origin import (
    ManagedGrpcPythonEnvCodeLocationOrigin,
    RemoteInstigatorOrigin,
    RemoteRepositoryOrigin,
)
from dagster._core.scheduler.instigation import (
    InstigatorState,
    InstigatorStatus,
    InstigatorType,
    ScheduleInstigatorData,
    SensorInstigatorData,
)
from dagster._core.types.loadable_target_origin import LoadableTargetOrigin

from cliniko_pipeline.orchestration.instance.home import open_instance
from cliniko_pipeline.postgres.operator_tables.stopped_instigators import LOCATION
from cliniko_pipeline.runtime import open_runtime
from cliniko_pipeline.settings import load_settings
from cliniko_pipeline_tests.support.processes import CommandLine


def state(name: str, kind: InstigatorType, location: str = LOCATION) -> InstigatorState:
    """Return the state that Dagster stores when somebody stops a schedule or sensor in the UI."""
    target = LoadableTargetOrigin(executable_path="python", module_name="cliniko_pipeline.definitions")
    code = ManagedGrpcPythonEnvCodeLocationOrigin(target, location)
    origin = RemoteInstigatorOrigin(RemoteRepositoryOrigin(code, "__repository__"), name)
    data = SensorInstigatorData() if kind is InstigatorType.SENSOR else ScheduleInstigatorData("* * * * *")
    return InstigatorState(origin, kind, InstigatorStatus.STOPPED, data)


def stop(instance: dg.DagsterInstance, *states: InstigatorState) -> None:
    for each in states:
        instance.add_instigator_state(each)


def test_stopped_schedule_and_sensor_are_named(
    command: CommandLine, environ: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("DAGSTER_HOME", "CLINIKO_DAGSTER_DATABASE_URL"):
        monkeypatch.setenv(name, "")  # so that they are restored after the test, because opening an instance sets them
    assert "stopped" not in command("doctor").stdout
    with open_runtime(load_settings(environ)) as runtime, open_instance(runtime) as instance:
        schedule = state("cliniko_syncs", InstigatorType.SCHEDULE)
        stop(instance, schedule, state("theirs", InstigatorType.SCHEDULE, "another_location"))
        examined, shown = command("doctor"), command("status", "--json")
        line = "cliniko_syncs is stopped in Dagster and does nothing: switch it on under Automation"
        assert f"! {line}" in examined.stdout
        assert line in shown.stderr
        assert "theirs" not in examined.stdout + shown.stderr
        assert (examined.returncode, shown.returncode, json.loads(shown.stdout)) == (0, 0, [])
        stop(instance, state("alerts", InstigatorType.SENSOR))
        assert "alerts, cliniko_syncs are stopped in Dagster and do nothing" in command("status").stderr
        for each in instance.all_instigator_state():
            instance.update_instigator_state(each.with_status(InstigatorStatus.RUNNING))
        assert "stopped" not in command("status").stderr + command("doctor").stdout
