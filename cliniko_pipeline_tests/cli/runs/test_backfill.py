"""`cliniko-pipeline backfill`: launched, refused and followed backfills."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import dagster as dg
import pytest
from dagster._daemon.types import DaemonHeartbeat

from cliniko_pipeline.orchestration.instance.home import STORAGE_VARIABLE, open_instance
from cliniko_pipeline.orchestration.sensors import organization_partitions
from cliniko_pipeline.postgres.operator_tables import organizations
from cliniko_pipeline.runtime import Runtime, open_runtime
from cliniko_pipeline.settings import load_settings
from cliniko_pipeline_tests.support.clinics import Clinics
from cliniko_pipeline_tests.support.processes import CommandLine

ASSETS = ["cliniko/patients", "cliniko/appointments", "contact_mapping", "active_patients"]
WRONG_KEY = "MS0tYS1rZXktdGhhdC1ub2JvZHktaGFz-au2"
REQUESTED = "select organization_id from cliniko.scheduling where requested_at < now()"


@pytest.fixture
def runtime(environ: dict[str, str]) -> Iterator[Runtime]:
    with open_runtime(load_settings(environ)) as runtime:
        yield runtime


@pytest.fixture
def instance(runtime: Runtime, monkeypatch: pytest.MonkeyPatch) -> Iterator[dg.DagsterInstance]:
    """Open the instance of the commands."""
    for name in ("DAGSTER_HOME", STORAGE_VARIABLE):
        monkeypatch.setenv(name, "")  # so that they are restored after the test, because opening an instance sets them
    with open_instance(runtime) as instance:
        yield instance


def _add_heartbeat(instance: dg.DagsterInstance) -> None:
    """Store a daemon's heartbeat that is valid for an hour."""
    timestamp = (datetime.now(UTC) + timedelta(hours=1)).timestamp()
    instance.add_daemon_heartbeat(DaemonHeartbeat(timestamp, "BACKFILL", None))


@pytest.mark.slow
def test_backfill_is_launched_for_the_chosen_assets(
    command: CommandLine, clinics: Clinics, runtime: Runtime, instance: dg.DagsterInstance
) -> None:
    """Without a daemon, a backfill waits and cannot be followed."""
    clinics.open(["alpha", "beta", "gamma"])
    arguments = ("beta", "alpha", "beta", "--assets", "active_patients, cliniko/patients", "--full")
    refused = command("backfill", *arguments, "--follow")
    assert refused.returncode == 1
    assert refused.stderr.startswith("Error: Nothing was launched: no Dagster daemon is running")
    assert not instance.get_backfills()

    done = command("backfill", *arguments)
    assert done.returncode == 0, done.stderr
    (found,) = instance.get_backfills()
    assert done.stdout == (
        f"Backfill {found.backfill_id} of 2 organizations was launched.\n"
        f"Dagster UI: http://127.0.0.1:3000/runs/b/{found.backfill_id}\n"
    )
    (warning,) = done.stderr.splitlines()
    assert warning == "The backfill waits: no Dagster daemon is running: `cliniko-pipeline ui` starts one."
    assert found.status.value == "REQUESTED"
    assert {key.to_user_string() for key in found.asset_selection or []} == {"cliniko/patients", "active_patients"}
    assert found.run_config == {"ops": {"cliniko__patients": {"config": {"full": True}}}}
    assert found.asset_backfill_data is not None
    targets = found.asset_backfill_data.target_subset.iterate_asset_partitions()
    assert {target.partition_key for target in targets} == {"alpha", "beta"}
    assert set(instance.get_dynamic_partitions("organizations")) == {"alpha", "beta"}
    # A backfill of only some assets does not replace a scheduled sync.
    assert clinics.rows(REQUESTED) == []

    # Partitions are not removed, because Dagster fails a whole backfill if one of its partitions is gone.
    organizations.remove(clinics.database, "alpha")
    with clinics.database.operator() as connection:
        organizations.set_active(connection, "beta", active=False)
    context = dg.build_sensor_context(instance=instance, resources={"runtime": runtime})
    requested = organization_partitions.evaluate_tick(context).dynamic_partitions_requests or []
    assert all(isinstance(request, dg.AddDynamicPartitionsRequest) for request in requested)


@pytest.mark.slow
def test_followed_backfill_ends_when_the_daemon_does(
    command: CommandLine, clinics: Clinics, instance: dg.DagsterInstance
) -> None:
    clinics.add("alpha")
    _add_heartbeat(instance)
    with command.start("backfill", "--all", "--follow") as running:
        running.wait_for("0 of 1 done, 1 waiting", 240)
        instance.wipe_daemon_heartbeats()
        assert running.wait(60) == 1
    last = running.output.splitlines()[-1]
    assert last.startswith("Error: The backfill ")
    assert last.endswith(" waits: no Dagster daemon is running: `cliniko-pipeline ui` starts one.")
    assert "Traceback" not in running.output
    # A backfill of all assets replaces a scheduled sync.
    assert clinics.rows(REQUESTED) == [("alpha",)]


@pytest.mark.slow
def test_followed_backfill_ends_with_its_runs(
    command: CommandLine, clinics: Clinics, instance: dg.DagsterInstance
) -> None:
    """The daemon also completes a backfill whose command was interrupted."""
    clinics.add("alpha")
    clinics.add("beta", api_key=WRONG_KEY)
    _add_heartbeat(instance)
    with command.start("backfill", "alpha", "--follow") as good, command.start("backfill", "--all", "--follow") as bad:
        # The backfills are launched before the daemon starts, because it looks for backfills at its start and every
        # half minute.
        good.wait_for("0 of 1 done, 1 waiting", 240)
        bad.wait_for("0 of 2 done, 2 waiting", 240)
        good.interrupt()
        assert good.wait(60) == 130
        with command.started_ui() as running:
            code = bad.wait(300)
            done = ["SUCCESS", "SUCCESS"]
            running.wait_until(lambda: clinics.dagster_runs("alpha") == done, "a backfill did not complete", 240)
    assert code == 1, bad.output
    assert "continues; the Dagster UI can cancel it." in good.output
    assert good.output.splitlines()[-1] == "Interrupted."
    assert "2 of 2 done, 1 failed\n" in bad.output
    (error,) = (line for line in bad.output.splitlines() if line.startswith("Error:"))
    assert error.startswith("Error: beta failed. ")
    assert "401" in error
    assert "Traceback" not in good.output + bad.output
    assert clinics.count("alpha", "cliniko.patients") == 2
    assert clinics.dagster_runs("beta") == ["FAILURE"]


def test_impossible_backfill_is_refused(command: CommandLine, clinics: Clinics) -> None:
    clinics.add("disabled")
    with clinics.database.operator() as connection:
        organizations.set_active(connection, "disabled", active=False)
    assert command("backfill", "--all").stderr.startswith("Error: There is no organization to sync")
    clinics.add("alpha")
    refused = [
        ([], 2, ["Give the IDs of organizations, or --all"]),
        (["nobody"], 1, ["organizations add nobody"]),
        (["alpha", "disabled"], 1, ["'disabled' is disabled", "organizations enable disabled"]),
        (["alpha", "--assets", "active_patients,patients"], 1, ["'patients'", *ASSETS]),
        (["alpha", "--assets", "contact_mapping", "--full"], 1, ["cliniko/patients", "cliniko/appointments"]),
    ]
    for arguments, code, words in refused:
        done = command("backfill", *arguments)
        assert (done.returncode, done.stdout) == (code, "")
        assert "Traceback" not in done.stderr
        for word in words:
            assert word in done.stderr
    assert clinics.rows("select to_regnamespace('dagster')") == [(None,)]
