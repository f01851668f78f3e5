"""Tests of the image and of all services of compose.yaml, which run on this machine without Docker."""

import re
import signal
import subprocess
from contextlib import ExitStack
from pathlib import Path

import pytest
from sqlalchemy.engine import URL

from cliniko_pipeline.postgres.engine import sql
from cliniko_pipeline_tests.support import deploy_files as files
from cliniko_pipeline_tests.support.brokers import running_broker
from cliniko_pipeline_tests.support.databases import administer
from cliniko_pipeline_tests.support.environments import environment, free_port
from cliniko_pipeline_tests.support.images import BuiltImage
from cliniko_pipeline_tests.support.processes import Running, tracebacks
from cliniko_pipeline_tests.support.services import client, request_sync, wait_for_status

pytestmark = pytest.mark.slow

PORTS = ("3000", "4000", "8000", "8765")
STARTED = ("code-server", "sandbox", "daemon", "webserver", "api")
START_SECONDS = 180
STOP_SECONDS = 90
ENDED_BY_SIGTERM = {0, 130, 143, -signal.SIGTERM}
UNCHECKED_HASH = (0b01).to_bytes(4, "little")
"""The flags of bytecode that Python uses without looking at its source (PEP 552)."""

TOKEN_COMMAND = ["cliniko-pipeline", "tokens", "create", "--name", "test", "--scope", "sync", "--all-organizations"]
FIRST_KEY = re.compile(r"API URL +(\S+)\n +API key +(\S+)")


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> BuiltImage:
    built = BuiltImage(tmp_path_factory.mktemp("image"))
    built.build()
    return built


class Services:
    """The services of compose.yaml, on free ports of this machine, with the image's programs."""

    def __init__(self, image: BuiltImage, database_url: URL, folder: Path, stack: ExitStack, **variables: str) -> None:
        self.ports = {port: str(free_port()) for port in PORTS}
        self.database_url = database_url
        self._image = image
        self._stack = stack
        given = environment(database_url, folder)
        variables = {
            **files.REQUIRED,
            **variables,
            "DATABASE_URL": given["DATABASE_URL"],
            "CREDENTIALS_ENCRYPTION_KEY": given["CREDENTIALS_ENCRYPTION_KEY"],
            "CLINIKO_ALLOWED_HOSTS": f"127.0.0.1:{self.ports['8765']}",
            "CLINIKO_UI_URL": f"http://127.0.0.1:{self.ports['3000']}",
        }
        self.services = files.with_texts(files.compose_file(variables)["services"], self._on_this_machine)
        workspace = image.root / "opt" / "dagster" / "workspace.yaml"
        workspace.write_text(self._on_this_machine((files.DOCKER / "workspace.yaml").read_text("utf-8")), "utf-8")
        self.running: dict[str, Running] = {}

    def _on_this_machine(self, text: str) -> str:
        """Return the text with free ports, and with this machine's address and paths in place of the containers'."""
        text = re.sub(r"(?<=host: )code-server|(?<=http://)webserver|0\.0\.0\.0", "127.0.0.1", text)
        text = re.sub(rf"\b({'|'.join(PORTS)})\b", lambda found: self.ports[found[0]], text)
        return self._image.mapped(text)

    def environ(self, name: str) -> dict[str, str]:
        return {**self._image.environ, **self.services[name]["environment"], "PYTHONUNBUFFERED": "1"}

    def run(self, name: str, command: list[str], stdin: str = "") -> subprocess.CompletedProcess[str]:
        """Run the command in the service's environment, as `docker compose exec` does."""
        program = self._image.root / "opt" / "cliniko-pipeline" / "bin" / command[0]
        return subprocess.run(
            [str(program), *command[1:]],
            env=self.environ(name),
            cwd=self._image.root / "opt" / "dagster",
            input=stdin,
            capture_output=True,
            text=True,
            check=False,
        )

    def start(self, name: str) -> None:
        """Start the service, and wait until its health check succeeds, if it has one."""
        service = self.services[name]
        default = [self._on_this_machine(word) for word in files.default_command()]
        program, *arguments = service.get("command", default)
        command = [str(self._image.root / "opt" / "cliniko-pipeline" / "bin" / program), *arguments]
        running = self._stack.enter_context(Running(command, self.environ(name), self._image.root / "opt" / "dagster"))
        self.running[name] = running
        if service.get("healthcheck", {}).get("disable"):
            return
        default_check = [self._on_this_machine(word) for word in files.image_health_check()]
        check = service["healthcheck"]["test"][1:] if "healthcheck" in service else default_check
        running.wait_until(lambda: self.run(name, check).returncode == 0, f"{name} is not healthy", START_SECONDS)

    def stop(self) -> dict[str, int]:
        """End all services as Docker does. Return their exit codes."""
        for running in self.running.values():
            running.process.send_signal(signal.SIGTERM)
        return {name: running.wait(STOP_SECONDS) for name, running in self.running.items()}


def test_image_has_bytecode_of_all_modules(image: BuiltImage) -> None:
    """The bytecode is used although the times of the files differ, because builders change them."""
    (package,) = (image.root / "opt" / "cliniko-pipeline" / "lib").glob("python*/site-packages/cliniko_pipeline")
    modules = sorted(package.rglob("*.py"))
    compiled = [next(each.parent.glob(f"__pycache__/{each.stem}.*.pyc"), None) for each in modules]
    assert len(modules) > 100
    assert None not in compiled
    flags = {each.read_bytes()[4:8] for each in compiled if each is not None}
    assert flags == {UNCHECKED_HASH}


def test_services_of_the_compose_file_sync_a_clinic(image: BuiltImage, empty_database_url: URL, tmp_path: Path) -> None:
    with ExitStack() as stack:
        services = Services(image, empty_database_url, tmp_path, stack)
        before = image.contents()
        _sync_a_clinic(services, STARTED)
        with client(f"http://127.0.0.1:{services.ports['3000']}") as browser:
            assert browser.get("/server_info", headers={"Host": "evil.example"}).status_code == 421
        _stop(services)
    assert image.contents() == before


def test_worker_of_the_compose_file_syncs_a_clinic(image: BuiltImage, empty_database_url: URL, tmp_path: Path) -> None:
    """The image's second Dagster home sends the sync to the worker."""
    with ExitStack() as stack:
        variables = {
            "DAGSTER_HOME": "/opt/dagster-celery",
            "CLINIKO_REDIS_URL": stack.enter_context(running_broker(tmp_path / "redis")).url,
        }
        services = Services(image, empty_database_url, tmp_path, stack, **variables)
        _sync_a_clinic(services, (*STARTED, "worker"))
        _stop(services)


def _sync_a_clinic(services: Services, names: tuple[str, ...]) -> None:
    """Migrate the database, start these services, and sync a clinic of the sandbox by the API."""
    # The container of the database executes this file.
    administer(services.database_url, sql("schema/application_tables"))
    migrated = services.run("migration", services.services["migration"]["command"])
    assert migrated.returncode == 0, migrated.stderr
    assert migrated.stdout.endswith("Dagster's tables are up to date.\n")
    for name in names:
        services.start(name)
    _add_first_clinic(services)
    created = services.run("api", TOKEN_COMMAND)
    (text,) = re.findall(r"clinikopipeline_\S+", created.stdout)
    with client(f"http://127.0.0.1:{services.ports['8000']}", text) as api:
        sync = wait_for_status(api, request_sync(api, "clinic")["id"])
    assert sync["status"] == "succeeded", [running.output for running in services.running.values()]


def _stop(services: Services) -> None:
    assert set(services.stop().values()) <= ENDED_BY_SIGTERM
    for running in services.running.values():
        assert tracebacks(running.output) == []


def _add_first_clinic(services: Services) -> None:
    found = services.running["sandbox"].wait_until(lambda: FIRST_KEY.search(services.running["sandbox"].output))
    assert found is not None
    url, key = found.groups()
    added = services.run(
        "code-server", ["cliniko-pipeline", "organizations", "add", "clinic", "--name", "Clinic", "--api-url", url], key
    )
    assert added.returncode == 0, added.stderr
