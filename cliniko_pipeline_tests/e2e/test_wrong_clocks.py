"""Tests of the command line on a machine with a wrong clock (faketime).

The database's and Cliniko's clocks are right.
"""

import shutil
import subprocess

import pytest

from cliniko_pipeline_tests.support.clinics import Clinics
from cliniko_pipeline_tests.support.fork_server import SCRIPT
from cliniko_pipeline_tests.support.processes import CommandLine

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("faketime") is None, reason="needs faketime"),
]


@pytest.mark.parametrize("offset", ["-365d", "+365d", "+3h"])
def test_wrong_machine_clock_is_refused(command: CommandLine, clinics: Clinics, offset: str) -> None:
    clinics.open(["alpha"])
    as_of = ("--as-of", "2026-06-15T09:30:00Z")
    limit = {"CLINIKO_MAX_CLOCK_SKEW_MINUTES": "60"}
    assert command("sync", "alpha", *as_of, **limit).returncode == 0
    assert clinics.active("alpha") == 1
    for arguments in (("sync", "alpha"), ("sync", "alpha", *as_of), ("backfill", "alpha"), ("ui",), ("doctor",)):
        ended = subprocess.run(
            ["faketime", "-f", offset, SCRIPT, *arguments],
            env=command.environ | limit,
            cwd=command.folder,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert ended.returncode == 1
        assert "This machine's clock is" in ended.stdout + ended.stderr, arguments
    assert clinics.active("alpha") == 1
    assert clinics.run_states("alpha") == [("succeeded", None)]
    assert clinics.dagster_runs("alpha") == ["SUCCESS"]
