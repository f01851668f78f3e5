"""Tests of the Dockerfile and of compose.yaml, as far as they need no Docker."""

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from cliniko_pipeline_tests.support import deploy_files as files

SECRETS = {"DATABASE_URL", "CREDENTIALS_ENCRYPTION_KEY", "CLINIKO_DAGSTER_DATABASE_URL", "CLINIKO_ALERT_URLS"}
IGNORED = (files.DOCKER / "Dockerfile.dockerignore").read_text(encoding="utf-8").splitlines()
SENT = {Path(line.removeprefix("!")) for line in IGNORED if line.startswith("!")}
"""Files and folders that are sent to the builder, besides which it gets nothing."""


def test_dockerfile_has_no_warning_of_its_linter() -> None:
    program = Path(sys.executable).with_name("hadolint")
    command = [str(program), "--no-color", "--failure-threshold", "warning", str(files.DOCKER / "Dockerfile")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_copied_files_are_sent_to_the_builder() -> None:
    assert "*" in IGNORED
    copies = [value.split() for instruction, value in files.dockerfile() if instruction == "COPY"]
    sources = {Path(word) for words in copies if not words[0].startswith("--from") for word in words[:-1]}
    assert [path for path in sources if not (files.ROOT / path).exists()] == []
    assert [path for path in sources if not SENT & {path, *path.parents}] == []
    assert [path for path in SENT if not any({source, *source.parents} & {path} for source in sources)] == []


def test_image_runs_without_root_and_holds_no_secret() -> None:
    (user,) = [value for instruction, value in files.dockerfile() if instruction == "USER"]
    assert int(user.partition(":")[0]) > 0
    arguments = {value.partition("=")[0] for instruction, value in files.dockerfile() if instruction == "ARG"}
    assert not SECRETS & (set(files.image_variables()) | arguments)


def test_programs_of_the_image_can_be_executed() -> None:
    programs = list((files.DOCKER / "bin").iterdir())
    assert programs
    assert [path.name for path in programs if not path.stat().st_mode & 0o111] == []


@pytest.mark.parametrize("name", files.REQUIRED)
def test_compose_file_requires_its_variables(name: str) -> None:
    with pytest.raises(KeyError, match=name):
        files.compose_file({**files.REQUIRED, name: ""})


def test_own_database_replaces_the_one_of_the_compose_file() -> None:
    services = files.compose_file(files.REQUIRED | {"DATABASE_URL": "postgresql://me@elsewhere/mine"})["services"]
    variables = services["daemon"]["environment"]
    assert {variables["DATABASE_URL"], variables["CLINIKO_DAGSTER_DATABASE_URL"]} == {"postgresql://me@elsewhere/mine"}
    assert services["database"]["profiles"] == ["database"]
    assert not services["migration"]["depends_on"]["database"]["required"]


def test_ports_of_containers_are_published_on_loopback_only() -> None:
    services = files.compose_file(files.REQUIRED)["services"]
    published = {name: each["ports"] for name, each in services.items() if "ports" in each}
    assert set(published) == {"webserver", "api"}
    assert [port for ports in published.values() for port in ports if not port.startswith("127.0.0.1:")] == []


def test_services_wait_for_the_migration() -> None:
    services = files.compose_file(files.REQUIRED)["services"]
    for name in ("code-server", "daemon", "webserver", "api"):
        assert services[name]["depends_on"] == {"migration": {"condition": "service_completed_successfully"}}


def test_environment_example_names_variables_of_the_compose_file() -> None:
    lines = (files.DOCKER / "env.example").read_text(encoding="utf-8").splitlines()
    named = {line.lstrip("#").partition("=")[0] for line in lines if "=" in line}
    text = (files.DOCKER / "compose.yaml").read_text(encoding="utf-8")
    profiles = {profile for each in yaml.safe_load(text)["services"].values() for profile in each.get("profiles", [])}
    assert [name for name in named - {"COMPOSE_PROFILES"} if f"${{{name}" not in text] == []
    assert set(files.REQUIRED) <= named
    chosen = {name for line in lines if "COMPOSE_PROFILES" in line for name in line.partition("=")[2].split(",")}
    assert chosen == profiles
