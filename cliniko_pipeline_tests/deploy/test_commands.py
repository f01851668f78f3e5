"""Tests of the commands and variables in the files of deploy/, against the programs and the settings."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner
from dagster._cli import create_dagster_cli
from dagster._daemon.cli import create_dagster_daemon_cli
from dagster_webserver.cli import dagster_webserver

from cliniko_pipeline.cli.main import cli
from cliniko_pipeline.orchestration.instance.home import instance_environment
from cliniko_pipeline.orchestration.webserver import MODULE
from cliniko_pipeline.runtime import open_runtime
from cliniko_pipeline.settings import fields, load_settings
from cliniko_pipeline_tests.support import deploy_files as files

Commands = dict[str, list[str]]

GUARDED_WEBSERVER = ["python", "-m", MODULE]
PROGRAMS = {
    "cliniko-pipeline": cli,
    "dagster": create_dagster_cli(),
    "dagster-daemon": create_dagster_daemon_cli(),
    "dagster-webserver": dagster_webserver,
}
SCRIPTS = {path.name for path in (files.DOCKER / "bin").iterdir()} - set(PROGRAMS)
OF_OTHER_IMAGES = {"pg_isready", "redis-cli", "redis-server"}

OF_PROCESSES = {
    "PATH",
    "HOME",
    "DAGSTER_RUN_STATUS_SENSOR_PROCESS_LIMIT",
    "CLINIKO_DAGSTER_DATABASE_URL",
    "CLINIKO_REDIS_URL",
}
"""Variables that are no settings of the pipeline."""


def commands_of_docker() -> Commands:
    services = files.compose_file(files.REQUIRED)["services"]
    checks = {f"{name}-check": each["healthcheck"].get("test", ["CMD"])[1:] for name, each in _checked(services)}
    started = {name: each["command"] for name, each in services.items() if "command" in each}
    return {**started, **checks, "image": files.default_command(), "image-check": files.image_health_check()}


def _checked(services: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    return ((name, each) for name, each in services.items() if "healthcheck" in each)


def commands_of_kubernetes() -> Commands:
    found: Commands = {}
    for name, pod in files.pods().items():
        (container,) = pod["containers"]
        found[name] = container["command"]
        for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
            if "exec" in container.get(probe, {}):
                found[f"{name}-{probe}"] = container[probe]["exec"]["command"]
    (server,) = files.helm_values()["dagster-user-deployments"]["deployments"]
    found["helm-code-server"] = ["dagster", "api", "grpc", "--port", "4000", *server["dagsterApiGrpcArgs"]]
    return found


def commands_of_systemd() -> Commands:
    return {
        name: value.replace("/etc/cliniko-pipeline", str(files.SYSTEMD)).split()
        for name, settings in files.units().items()
        for key, value in settings
        if key == "ExecStart"
    }


COMMANDS = [
    pytest.param(command, id=f"{place}-{name}")
    for place, found in {
        "docker": commands_of_docker(),
        "kubernetes": commands_of_kubernetes(),
        "systemd": commands_of_systemd(),
    }.items()
    for name, command in found.items()
    if command
]


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_of_deployments_are_accepted(command: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """The program's own parser accepts the arguments. The command itself is not run."""
    program, *arguments = [Path(command[0]).name, *command[1:]]
    if [program, *arguments[:2]] == GUARDED_WEBSERVER:
        program, arguments = "dagster-webserver", arguments[2:]
    if program in SCRIPTS | OF_OTHER_IMAGES:
        return
    monkeypatch.chdir(files.DOCKER)
    monkeypatch.setattr(click.Command, "invoke", lambda _command, _context: None)
    done = CliRunner().invoke(PROGRAMS[program], arguments)
    assert done.exit_code == 0, done.output


def test_deployments_start_the_same_services() -> None:
    docker = set(files.compose_file(files.REQUIRED)["services"]) - {"database", "redis", "sandbox"}
    units = {name.removeprefix("cliniko-pipeline-") for name in files.units()}
    assert docker == set(files.pods()) == units


@pytest.fixture
def needed(environ: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, str]]:
    """Yield the variables that Dagster's processes need."""
    with open_runtime(load_settings(environ)) as runtime:
        yield instance_environment(runtime)


def test_dagsters_processes_have_their_variables(needed: dict[str, str]) -> None:
    limit = "DAGSTER_RUN_STATUS_SENSOR_PROCESS_LIMIT"
    image = files.image_variables()
    of_compose = files.compose_file(files.REQUIRED)["x-pipeline"]["environment"]
    assert set(needed) <= set(image) | set(of_compose)
    assert image[limit] == needed[limit]
    for pod in files.pods().values():
        (container,) = pod["containers"]
        assert set(needed) <= set(image) | {each["name"] for each in container["env"]}
    for settings in files.units().values():
        values = dict(value.split("=", 1) for name, value in settings if name == "Environment")
        assert set(needed) <= set(values) | set(files.environment_file(files.SYSTEMD / "environment.example"))
        assert values[limit] == needed[limit]


def test_variables_of_deployments_are_settings() -> None:
    settings = {variable.name for group in fields.GROUPS for variable in fields.variables(group)}
    values = files.helm_values()
    named = [
        files.image_variables(),
        files.compose_file(files.REQUIRED)["x-pipeline"]["environment"],
        files.environment_file(files.KUBERNETES / "settings.env"),
        files.environment_file(files.SYSTEMD / "environment.example"),
        {each["name"] for pod in files.pods().values() for each in pod["containers"][0]["env"]},
        {each["name"] for part in ("dagsterWebserver", "dagsterDaemon") for each in values[part]["env"]},
    ]
    assert [set(names) - settings - OF_PROCESSES for names in named] == [set()] * len(named)
