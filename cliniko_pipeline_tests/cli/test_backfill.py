"""`cliniko-pipeline backfill`: what it launches, what it refuses, and how it follows what the daemon makes of it."""

import time
from collections.abc import Iterator

import dagster as dg
import pytest
from dagster._daemon.types import DaemonHeartbeat

from cliniko_pipeline.orchestration.instance import STORAGE_VARIABLE, open_instance
from cliniko_pipeline.orchestration.sensors import organization_partitions
from cliniko_pipeline.postgres import organizations
from cliniko_pipeline.runtime import Runtime, open_runtime
from cliniko_pipeline.settings import load_settings
from cliniko_pipeline_tests.support.clinics import Clinics
from cliniko_pipeline_tests.support.environments import free_port
from cliniko_pipeline_tests.support.processes import CommandLine

ASSETS = ["cliniko/patients", "cliniko/appointments", "contact_mapping", "active_patients"]
WRONG_KEY = "MS0tYS1rZXktdGhhdC1ub2JvZHktaGFz-au2"


class Deployment:
    """The Dagster instance, seen from beside the commands."""

    def __init__(self, runtime: Runtime, instance: dg.DagsterInstance) -> None:
        self.runtime = runtime
        self.instance = instance

    def show_a_daemon(self) -> None:
        """As one does every 30 seconds."""
        self.instance.add_daemon_heartbeat(DaemonHeartbeat(time.time(), "BACKFILL", None))

    @property
    def partitions(self) -> set[str]:
        return set(self.instance.get_dynamic_partitions("organizations"))


@pytest.fixture
def deployment(environ: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> Iterator[Deployment]:
    for name in ("DAGSTER_HOME", STORAGE_VARIABLE):
        monkeypatch.setenv(name, "")  # and back again after the test, which opens the instance
    with open_runtime(load_settings(environ)) as runtime, open_instance(runtime) as instance:
        yield Deployment(runtime, instance)


def test_it_asks_for_a_run_of_the_chosen_assets_for_each_organization_and_says_that_no_daemon_runs(
    command: CommandLine, clinics: Clinics, deployment: Deployment
) -> None:
    clinics.open(["alpha", "beta", "gamma"])
    arguments = ("beta", "alpha", "beta", "--assets", "active_patients, cliniko/patients", "--full")
    refused = command("backfill", *arguments, "--follow")
    assert refused.returncode == 1
    assert refused.stderr.startswith("Error: Nothing was launched, since no Dagster daemon is running")
    assert not deployment.instance.get_backfills()

    done = command("backfill", *arguments)
    assert done.returncode == 0, done.stderr
    (found,) = deployment.instance.get_backfills()
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
    assert {target.partition_key for target in targets} == {"alpha", "beta"} == deployment.partitions

    # Dagster would fail the whole backfill where a partition is gone that it names.
    organizations.remove(clinics.database, "alpha")
    with clinics.database.operator() as connection:
        organizations.set_active(connection, "beta", active=False)
    context = dg.build_sensor_context(instance=deployment.instance, resources={"runtime": deployment.runtime})
    requested = organization_partitions.evaluate_tick(context).dynamic_partitions_requests or []
    assert all(isinstance(request, dg.AddDynamicPartitionsRequest) for request in requested)


def test_followed_it_ends_when_all_runs_have_and_says_which_failed_and_why(
    command: CommandLine, clinics: Clinics, deployment: Deployment
) -> None:
    clinics.add("alpha")
    clinics.add("beta", api_key=WRONG_KEY)
    deployment.show_a_daemon()
    with command.start("backfill", "alpha", "--follow") as good, command.start("backfill", "--all", "--follow") as bad:
        # Launched before the daemon begins, since that looks for backfills at once and then every half a minute.
        good.wait_for("0 of 1 done, 1 waiting")
        bad.wait_for("0 of 2 done, 2 waiting")
        deployment.show_a_daemon()
        with command.start("ui", "--port", str(free_port())) as running:
            try:
                codes = good.wait(150), bad.wait(150)
            finally:
                running.interrupt()
                running.wait(60)
    assert codes == (0, 1), bad.output
    assert "1 of 1 done\n" in good.output
    assert "2 of 2 done, 1 failed\n" in bad.output
    (error,) = (line for line in bad.output.splitlines() if line.startswith("Error:"))
    assert error.startswith("Error: beta failed. ")
    assert "401" in error
    assert "Traceback" not in good.output + bad.output
    assert clinics.count("alpha", "cliniko.patients") == 2
    # The schedule takes what a backfill does for done.
    with clinics.database.operator() as connection:
        requested = connection.exec_driver_sql(
            "select organization_id from cliniko.scheduling where requested_at < now()"
        )
        assert set(requested.scalars()) == {"alpha", "beta"}
    assert clinics.dagster_runs("alpha") == ["SUCCESS"] * 2
    assert clinics.dagster_runs("beta") == ["FAILURE"]


def test_what_follows_it_ends_with_the_daemon_or_on_ctrl_c_and_the_backfill_goes_on(
    command: CommandLine, clinics: Clinics, deployment: Deployment
) -> None:
    clinics.add("alpha")
    deployment.show_a_daemon()
    arguments = ("backfill", "alpha", "--assets", "contact_mapping", "--follow")
    with command.start(*arguments) as left, command.start(*arguments) as interrupted:
        interrupted.wait_for("1 waiting")
        interrupted.interrupt()
        assert interrupted.wait(30) == 130
        left.wait_for("1 waiting")
        deployment.instance.wipe_daemon_heartbeats()
        assert left.wait(30) == 1
    one, other = (backfill.backfill_id for backfill in deployment.instance.get_backfills())
    assert interrupted.output.splitlines()[-1] == "Interrupted."
    for each in (one, other):
        assert f"Backfill {each} of 1 organization is launched." in left.output + interrupted.output
    assert "goes on; the Dagster UI can cancel it." in interrupted.output
    last = left.output.splitlines()[-1]
    assert last.startswith("Error: The backfill ")
    assert last.endswith(" goes on when one runs, but no Dagster daemon is running: `cliniko-pipeline ui` starts one.")
    assert {backfill.status.value for backfill in deployment.instance.get_backfills()} == {"REQUESTED"}
    # What is only a part of a sync stands for none.
    with clinics.database.operator() as connection:
        assert not connection.exec_driver_sql("select organization_id from cliniko.scheduling").all()


def test_what_cannot_be_backfilled_is_refused_before_anything_is_done(command: CommandLine, clinics: Clinics) -> None:
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
