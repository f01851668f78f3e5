"""Tests of the systemd units, by systemd's own tool."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from cliniko_pipeline_tests.support import deploy_files as files

UNITS = sorted(path.name for path in files.SYSTEMD.glob("*.service"))
MAX_EXPOSURE = 15
"""The limit for `systemd-analyze security`, in tenths. systemd calls less than 20 "OK"."""

pytestmark = pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="without systemd")


@pytest.fixture
def installed(tmp_path: Path) -> Path:
    """Return a copy of the units, with the programs of this machine."""
    shutil.copytree(files.SYSTEMD, tmp_path / "units")
    for path in (tmp_path / "units").rglob("*"):
        if path.is_file():
            text = path.read_text(encoding="utf-8").replace("/opt/cliniko-pipeline", sys.prefix)
            path.write_text(text, encoding="utf-8")
    return tmp_path / "units"


def analyze(*arguments: str, units: Path) -> subprocess.CompletedProcess[str]:
    command = ["systemd-analyze", *arguments]
    # The colon at the end adds systemd's own folders.
    environ = {"SYSTEMD_UNIT_PATH": f"{units}:", "PATH": "/usr/bin:/bin"}
    return subprocess.run(command, env=environ, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("name", [*UNITS, "cliniko-pipeline.target"])
def test_units_are_verified_by_systemd(name: str, installed: Path) -> None:
    done = analyze("verify", "--man=no", "--recursive-errors=one", str(installed / name), units=installed)
    assert (done.returncode, [line for line in done.stderr.splitlines() if "cliniko" in line]) == (0, [])


@pytest.mark.parametrize("name", UNITS)
def test_units_are_hardly_exposed(name: str, installed: Path) -> None:
    done = analyze("security", "--offline=yes", f"--threshold={MAX_EXPOSURE}", str(installed / name), units=installed)
    assert done.returncode == 0, done.stdout + done.stderr


def test_target_starts_all_services_but_migration_and_workers() -> None:
    text = (files.SYSTEMD / "cliniko-pipeline.target").read_text(encoding="utf-8")
    wanted = {word for line in text.splitlines() if line.startswith("Wants=") for word in line[6:].split()}
    assert wanted == set(UNITS) - {"cliniko-pipeline-migration.service", "cliniko-pipeline-worker@.service"}
