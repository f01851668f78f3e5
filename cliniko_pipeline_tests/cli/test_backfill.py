"""`cliniko-pipeline backfill`: what it launches and refuses, and how it follows what it launched."""

from collections.abc import Iterator
from datetime import UTC, datetime

import dagster as dg
import pytest
from dagster._daemon.types import DaemonHeartbeat

from cliniko_pipeline.definitions import build_definitions
from cliniko_pipeline.orchestration import backfills
from cliniko_pipeline.orchestration.backfills import BACKFILL_TAG, asset_names, launch_backfill
from cliniko_pipeline.orchestration.instance import STORAGE_VARIABLE, open_instance
from cliniko_pipeline.orchestration.sensors import organization_partitions
from cliniko_pipeline.postgres import organizations
from cliniko_pipeline.runtime import Runtime, open_runtime
from cliniko_pipeline.settings import load_settings
from cliniko_pipeline_tests.support.clinics import Clinics
from cliniko_pipeline_tests.support.environments import free_port
from cliniko_pipeline_tests.support.processes import CommandLine, Running

ASSETS = ["cliniko/patients", "cliniko/appointments", "contact_mapping", "active_patients"]
WRONG_KEY = "MS0tYS1rZXktdGhhdC1ub2JvZHktaGFz-au2"


class DagsterInstance:
    """The instance that the commands use, and the daemon's part in it."""

    def __init__(self, runtime: Runtime, instance: dg.DagsterInstance) -> None:
        self.runtime = runtime
        self.instance = instance

    def add_heartbeat(self) -> bool:
        self.instance.add_daemon_heartbeat(DaemonHeartbeat(datetime.now(UTC).timestamp(), "BACKFILL", None))
        return True

    def wait_for(self, running: Running, text: str) -> None:
        """Wait for the text while the daemon gives its sign of life, which counts for two minutes."""
        running.wait_until(lambda: self.add_heartbeat() and text in running.output, f"no {text!r}")

    def run(self, organization_id: str, backfill_id: str) -> None:
        """Run the organization's part of a backfill."""
        build_definitions(runtime=self.runtime).resolve_job_def("cliniko_sync").execute_in_process(
            instance=self.instance,
            partition_key=organization_id,
            run_config={"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}},
            tags={BACKFILL_TAG: backfill_id},
            raise_on_error=False,
        )

    @property
    def partitions(self) -> set[str]:
        return set(self.instance.get_dynamic_partitions("organizations"))


@pytest.fixture
def dagster(environ: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> Iterator[DagsterInstance]:
    for name in ("DAGSTER_HOME", STORAGE_VARIABLE):
        monkeypatch.setenv(name, "")  # and back again after the test, which opens the instance
    with open_runtime(load_settings(environ)) as runtime, open_instance(runtime) as instance:
        yield DagsterInstance(runtime, instance)


def test_backfill_is_launched_for_the_chosen_assets(
    command: CommandLine, clinics: Clinics, dagster: DagsterInstance
) -> None:
    """It waits when no daemon runs, which cannot be followed."""
    clinics.open(["alpha", "beta", "gamma"])
    arguments = ("beta", "alpha", "beta", "--assets", "active_patients, cliniko/patients", "--full")
    refused = command("backfill", *arguments, "--follow")
    assert refused.returncode == 1
    assert refused.stderr.startswith("Error: Nothing was launched, since no Dagster daemon is running")
    assert not dagster.instance.get_backfills()

    done = command("backfill", *arguments)
    assert done.returncode == 0, done.stderr
    (found,) = dagster.instance.get_backfills()
    assert done.stdout == (
        f"Backfill {found.backfill_id} of 2 organizations is launched.\n"
        f"The Dagster UI shows it: http://127.0.0.1:3000/runs/b/{found.backfill_id}\n"
    )
    (warning,) = done.stderr.splitlines()
    assert warning == "It waits, since no Dagster daemon is running: `cliniko-pipeline ui` starts one."
    assert found.status.value == "REQUESTED"
    assert {key.to_user_string() for key in found.asset_selection or []} == {"cliniko/patients", "active_patients"}
    assert found.run_config == {"ops": {"cliniko__patients": {"config": {"full": True}}}}
    assert found.asset_backfill_data is not None
    targets = found.asset_backfill_data.target_subset.iterate_asset_partitions()
    assert {target.partition_key for target in targets} == {"alpha", "beta"} == dagster.partitions

    # Dagster would fail the whole backfill where a partition is gone that it names.
    organizations.remove(clinics.database, "alpha")
    with clinics.database.operator() as connection:
        organizations.set_active(connection, "beta", active=False)
    context = dg.build_sensor_context(instance=dagster.instance, resources={"runtime": dagster.runtime})
    requested = organization_partitions.evaluate_tick(context).dynamic_partitions_requests or []
    assert all(isinstance(request, dg.AddDynamicPartitionsRequest) for request in requested)


def test_followed_backfill_ends_with_its_runs_or_the_daemon(
    command: CommandLine, clinics: Clinics, dagster: DagsterInstance
) -> None:
    """The test plays the daemon's part: it runs one of two backfills, and stops before the other."""
    clinics.add("alpha")
    clinics.add("beta", api_key=WRONG_KEY)
    dagster.add_heartbeat()
    part = ("backfill", "alpha", "--assets", "contact_mapping", "--follow")
    with command.start("backfill", "--all", "--follow") as ending:
        dagster.wait_for(ending, "0 of 2 done, 2 waiting")
        (backfill,) = dagster.instance.get_backfills()
        with command.start(*part) as left:
            for name in ("alpha", "beta"):
                dagster.run(name, backfill.backfill_id)
            assert ending.wait(60) == 1
            dagster.wait_for(left, "0 of 1 done, 1 waiting")
            dagster.instance.wipe_daemon_heartbeats()
            assert left.wait(60) == 1
    assert "2 of 2 done, 1 failed\n" in ending.output
    (error,) = (line for line in ending.output.splitlines() if line.startswith("Error:"))
    assert error.startswith("Error: beta failed. ")
    assert "401" in error
    last = left.output.splitlines()[-1]
    assert last.startswith("Error: The backfill ")
    assert last.endswith(" goes on when one runs, but no Dagster daemon is running: `cliniko-pipeline ui` starts one.")
    assert "Traceback" not in ending.output + left.output


def test_schedule_counts_only_backfills_of_all_assets(clinics: Clinics, dagster: DagsterInstance) -> None:
    """The schedule does not repeat at once what a backfill of all assets does."""
    clinics.open(["alpha", "beta"])
    everything = asset_names()
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(backfills, "_launched", lambda _mutation: "id")
        launch_backfill(dagster.instance, dagster.runtime, ["alpha"], everything, full=False)
        launch_backfill(dagster.instance, dagster.runtime, ["beta"], everything[:1], full=False)
    assert _requested(clinics) == {"alpha"}


@pytest.mark.slow
def test_daemon_carries_out_a_backfill_after_ctrl_c(
    command: CommandLine, clinics: Clinics, dagster: DagsterInstance
) -> None:
    clinics.add("alpha")
    clinics.add("beta", api_key=WRONG_KEY)
    dagster.add_heartbeat()
    with command.start("backfill", "alpha", "--follow") as good, command.start("backfill", "--all", "--follow") as bad:
        # Launched before the daemon begins, which looks for backfills then, and every half a minute.
        dagster.wait_for(good, "0 of 1 done, 1 waiting")
        dagster.wait_for(bad, "0 of 2 done, 2 waiting")
        good.interrupt()
        assert good.wait(60) == 130
        dagster.add_heartbeat()
        with command.start("ui", "--port", str(free_port())) as running:
            try:
                code = bad.wait(300)
                running.wait_until(lambda: len(clinics.dagster_runs("alpha")) == 2, "a backfill did not go on")
                running.wait_until(lambda: set(clinics.dagster_runs("alpha")) == {"SUCCESS"}, "a run did not end")
            finally:
                running.interrupt()
                running.wait(60)
    assert code == 1, bad.output
    assert "goes on; the Dagster UI can cancel it." in good.output
    assert good.output.splitlines()[-1] == "Interrupted."
    assert "2 of 2 done, 1 failed\n" in bad.output
    assert "Traceback" not in good.output + bad.output
    assert clinics.count("alpha", "cliniko.patients") == 2
    assert _requested(clinics) == {"alpha", "beta"}
    assert clinics.dagster_runs("beta") == ["FAILURE"]


def _requested(clinics: Clinics) -> set[str]:
    with clinics.database.operator() as connection:
        statement = "select organization_id from cliniko.scheduling where requested_at < now()"
        return set(connection.exec_driver_sql(statement).scalars())


def test_impossible_backfill_is_refused(command: CommandLine, clinics: Clinics) -> None:
    clinics.add("disabled")
    with clinics.database.operator() as connection:
        organizations.set_active(connection, "disabled", active=False)
    assert command("backfill", "--all").stderr.startswith("Error: There is no organization to sync")
    clinics.add("alpha")
    refused = [
        ([], 2, ["Name organizations, or give --all"]),
        (["nobody"], 1, ["organizations add nobody"]),
        (["alpha", "disabled"], 1, ["'disabled' is disabled", "organizations enable disabled"]),
        (["alpha", "--assets", "active_patients,patients"], 1, ["'patients'", *ASSETS]),
        (["alpha", "--assets", "contact_mapping", "--full"], 1, ["cliniko/patients", "cliniko/appointments"]),
    ]
    for arguments, code, words in refused:
        done = command("backfill", *arguments)
        assert done.returncode == code
        assert done.stdout == ""
        assert "Traceback" not in done.stderr
        for word in words:
            assert word in done.stderr
    with clinics.database.operator() as connection:
        assert connection.exec_driver_sql("select to_regnamespace('dagster')").scalar_one() is None
