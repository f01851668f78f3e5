"""Tests of the Dagster UI in a real browser: a run, a backfill, asset checks and plots.

CLINIKO_TEST_PICTURES is a folder for the screenshots. `make screenshots` writes those of the documentation.
"""

import re
import signal
from datetime import UTC, datetime
from pathlib import Path

import pytest
from sqlalchemy.engine import URL

from cliniko_pipeline.definitions import build_definitions
from cliniko_pipeline.sandbox.accounts.demo import DemoOrganization, demo_organizations
from cliniko_pipeline_tests.support.browsers import (
    SECONDS,
    WINDOW,
    DagsterUI,
    answers,
    browser_program,
    expect,
    opened_ui,
    pictures_folder,
)
from cliniko_pipeline_tests.support.clinics import Clinics
from cliniko_pipeline_tests.support.demo_clinics import add_demo_clinic
from cliniko_pipeline_tests.support.environments import environment, free_port
from cliniko_pipeline_tests.support.processes import CommandLine, Running, processes_of
from cliniko_pipeline_tests.support.services import BY_HAND
from cliniko_pipeline_tests.support.waiting import wait_until

ASSETS = {"cliniko/patients", "cliniko/appointments", "contact_mapping", "active_patients"}
FIRST = "surf-rehab"
A_RUN = 120
A_BACKFILL = 180
"""Seconds for a backfill. The daemon looks for backfills every half minute, to launch the runs and to see their end."""


@pytest.fixture
def environ(database_url: URL, home: Path) -> dict[str, str]:
    return environment(database_url, home) | BY_HAND


@pytest.mark.slow
def test_organizations_are_materialized_in_the_dagster_ui(
    environ: dict[str, str], clinics: Clinics, tmp_path: Path
) -> None:
    """One organization is synced, then all in a backfill. The UI shows their checks, plots and metadata."""
    browser_program()  # fails without a browser, before anything is started
    demo = demo_organizations(datetime.now(UTC))
    for each in demo:
        add_demo_clinic(clinics, each)
    port = free_port()
    address = f"http://127.0.0.1:{port}"
    with CommandLine(environ, tmp_path).start("ui", "--port", str(port)) as running:
        try:
            running.wait_until(lambda: answers(address), "the UI never answered", 120)
            with opened_ui(address, pictures_folder(tmp_path)) as ui:
                _assert_one_organization_is_materialized(ui, clinics, demo)
                _assert_a_backfill_materializes_all(ui, running, clinics, demo)
                assert ui.complaints == []
        finally:
            running.interrupt(signal.SIGTERM)
            running.wait(60)
    wait_until(lambda: not processes_of(tmp_path), lambda: f"they never ended: {processes_of(tmp_path)}")


def _assert_one_organization_is_materialized(ui: DagsterUI, clinics: Clinics, demo: list[DemoOrganization]) -> None:
    run = ui.launch("cliniko_sync", partition=FIRST)
    ui.open(run)
    ui.see_text("Success", seconds=A_RUN)
    ui.see_text("partition: " + FIRST)
    ui.see(ui.page.get_by_text("RUN_SUCCESS"))
    ui.see_text("Executing (0)")
    ui.picture("run")
    for each in demo:
        assert clinics.dagster_runs(each.id) == (["SUCCESS"] if each.id == FIRST else [])
    assert [each.id for each in demo if clinics.active(each.id)] == [FIRST]


def _assert_a_backfill_materializes_all(
    ui: DagsterUI, running: Running, clinics: Clinics, demo: list[DemoOrganization]
) -> None:
    backfill = ui.launch("cliniko_sync", partition=None)
    for each in demo:
        runs = ["SUCCESS"] * (2 if each.id == FIRST else 1)
        running.wait_until(
            lambda name=each.id, runs=runs: clinics.dagster_runs(name) == runs, f"{each.id} was not synced", A_BACKFILL
        )
        assert clinics.active(each.id) >= 5

    # While these pages are checked, the daemon notices the end of the backfill.
    _assert_plots_go_from_the_first_organization_to_the_last(ui)
    _assert_the_checks_of_the_sync_have_passed(ui)

    ui.page.set_viewport_size(WINDOW | {"height": 600})
    ui.open("/assets/active_patients?view=lineage&lineageScope=upstream")
    expect(ui.page.get_by_text("100% filled")).to_have_count(len(ASSETS), timeout=SECONDS * 1000)
    ui.picture("asset-graph")
    ui.page.set_viewport_size(WINDOW)
    ui.open(f"/assets/active_patients?view=partitions&partition={FIRST}")
    ui.see_text("rows_updated")
    ui.picture("materialization")

    ui.open(backfill)
    status = ui.page.get_by_text("Status", exact=True).locator("xpath=..")
    expect(status).to_contain_text("Succeeded", timeout=A_BACKFILL * 1000)
    row = ui.page.get_by_role("row").filter(has_text="cliniko_sync")
    # The cells have the numbers of targeted, running, succeeded and failed partitions.
    expect(row.get_by_role("cell")).to_have_text([re.compile("100% completed"), "3", "0", "3", "0"])
    ui.page.set_viewport_size(WINDOW | {"height": 600})
    ui.picture("backfill")


def _assert_plots_go_from_the_first_organization_to_the_last(ui: DagsterUI) -> None:
    ui.open("/assets/active_patients")
    ui.see_text("public.active_patients")
    ui.page.get_by_role("button", name="Plots").click()
    assert ui.plotted("dagster/row_count") > 0.5
    assert ui.plotted("rows_updated") > 0.5
    ui.page.get_by_role("button", name="Plots").evaluate("button => button.scrollIntoView({ block: 'start' })")
    ui.picture("plots")


def _assert_the_checks_of_the_sync_have_passed(ui: DagsterUI) -> None:
    definitions = build_definitions()
    known = definitions.resolve_asset_graph().asset_check_keys
    checks = definitions.resolve_job_def("cliniko_sync").asset_layer.asset_graph.asset_check_keys
    assert {each.asset_key.to_user_string() for each in checks} == ASSETS
    for each in sorted(checks):
        of_the_asset = sum(other.asset_key == each.asset_key for other in known)
        ui.open(f"/assets/{'/'.join(each.asset_key.path)}?view=checks&checkDetail={each.name}")
        ui.see_text(f"Checks ({of_the_asset})")
        ui.see(ui.page.get_by_text(each.name, exact=True).last)
        ui.see(ui.page.get_by_text("Evaluation result").locator("xpath=..").get_by_text("Passed", exact=True))
        if each.name == "every_active_patient_with_a_contact_is_stored_once":
            ui.picture("checks")
