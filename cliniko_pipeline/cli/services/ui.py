"""`cliniko-pipeline ui`: the Dagster UI and daemon on this machine, optionally with the HTTP API."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import click

from cliniko_pipeline.cli.session import session
from cliniko_pipeline.postgres.operator_tables import organizations as stored
from cliniko_pipeline.runtime import Runtime

HOST = "127.0.0.1"
PORT = 3000
MAX_PORTS_TRIED = 50
MAX_PORT = 65535
STOP_SECONDS = 20
SECONDS_BETWEEN_POLLS = 0.2


@click.command()
@click.option(
    "--port",
    type=click.IntRange(1, MAX_PORT),
    default=PORT,
    show_default=True,
    help="If this port is in use, the next free port is taken.",
)
@click.option(
    "--api-port",
    type=click.IntRange(1, MAX_PORT),
    help="Also serve the HTTP API and its page at this or the next free port.",
)
def ui(port: int, api_port: int | None) -> None:
    """Serve the Dagster UI and daemon until Ctrl-C."""
    with session() as runtime:
        # The daemon stores times. If the clock is ahead now and is corrected later, the daemon would stand still.
        runtime.machine_clock().require_allowed()
        serve(runtime, port, api_port=api_port)


@dataclass(frozen=True)
class _Service:
    """A process that runs until it is stopped. `error` is shown if the process ends by itself."""

    command: Sequence[str]
    environment: Mapping[str, str]
    error: str


def serve(
    runtime: Runtime,
    port: int = PORT,
    *,
    api_port: int | None = None,
    log_in: str = "log in with a token of `cliniko-pipeline tokens create`",
) -> None:
    """Run `dagster dev`, and the API if `api_port` is given, until Ctrl-C or SIGTERM.

    Then end their process groups. `log_in` is printed beside the page's address.
    """
    from cliniko_pipeline.orchestration.instance.home import instance_environment, open_instance  # noqa: PLC0415
    from cliniko_pipeline.orchestration.partitions import ensure_partitions  # noqa: PLC0415
    from cliniko_pipeline.orchestration.runs.in_process import end_abandoned_runs  # noqa: PLC0415

    with runtime.database.operator() as connection:
        ids = [organization.id for organization in stored.organizations(connection) if organization.is_active]
    with open_instance(runtime) as instance:
        ensure_partitions(instance, ids)
        for organization_id in ids:
            end_abandoned_runs(instance, runtime, organization_id)
    # Without PYTHONWARNINGS, Dagster warns at every start that `dagster dev` is an older command.
    environment = os.environ | instance_environment(runtime) | {"PYTHONWARNINGS": "ignore"}
    free = _free_port(port, "the UI", "--port")
    address = f"http://{HOST}:{free}"
    # Alerts link to this address.
    environment.setdefault("CLINIKO_UI_URL", address)
    with resources.as_file(resources.files("cliniko_pipeline") / "orchestration" / "workspace.yaml") as workspace:
        services = [_dagster(workspace, free, environment)]
        if api_port is not None:
            api_free = _free_port(api_port, "the API", "--api-port", taken=free)
            services.append(_api(api_free, environment | {"API_DAGSTER_URL": address}))
            click.echo(f"Page: http://{HOST}:{api_free} ({log_in})")
        click.echo(f"Dagster UI: {address} (answers in a few seconds; Ctrl-C ends it)")
        _run_until_stopped(services)


def _dagster(workspace: Path, port: int, environment: Mapping[str, str]) -> _Service:
    # Plain `dagster dev` would accept requests from every web page that is open on this machine.
    command = [sys.executable, "-m", "cliniko_pipeline.orchestration.webserver", "dev", "--workspace", str(workspace)]
    return _Service(
        [*command, "--host", HOST, "--port", str(port), "--log-level", "warning"],
        environment,
        # `dagster dev` also ends with exit code 0 if its daemon or webserver fails. It logs the reason.
        "Dagster has ended by itself, or was killed. Start the command again: interrupted runs are repeated.",
    )


def _api(port: int, environment: Mapping[str, str]) -> _Service:
    command = [sys.executable, "-c", "from cliniko_pipeline.cli.main import main; main()", "api"]
    return _Service(
        [*command, "--host", HOST, "--port", str(port)],
        environment,
        "The API has ended by itself, or was killed, and Dagster was stopped. Start the command again: interrupted"
        " runs are repeated.",
    )


def _run_until_stopped(services: Sequence[_Service]) -> None:
    started: list[subprocess.Popen[bytes]] = []
    try:
        for service in services:
            # Each service has its own session, so Ctrl-C reaches only this process, which then ends the services.
            process = subprocess.Popen(service.command, env=service.environment, start_new_session=True)  # noqa: S603
            started.append(process)
        while all(process.poll() is None for process in started):
            time.sleep(SECONDS_BETWEEN_POLLS)
        pairs = zip(services, started, strict=True)
        error = next(service.error for service, process in pairs if process.poll() is not None)
    except KeyboardInterrupt:
        click.echo("Stopping ...")
        return
    finally:
        _end_groups(started)
    raise click.ClickException(error)


def _end_groups(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    """End the process groups, beginning with the group that was started last."""
    left = list(reversed(processes))
    for sign in (signal.SIGINT, signal.SIGTERM, signal.SIGKILL):
        left = [process for process in left if _signal_group(process, sign)]
        until = time.monotonic() + STOP_SECONDS
        for process in left:
            with suppress(subprocess.TimeoutExpired):
                process.wait(max(until - time.monotonic(), 0))


def _signal_group(process: subprocess.Popen[bytes], sign: signal.Signals) -> bool:
    """Send the signal to the process's group. Return whether the group still had a process."""
    try:
        os.killpg(process.pid, sign)
    except ProcessLookupError:
        return False
    return True


def _free_port(wanted: int, service: str, option: str, *, taken: int | None = None) -> int:
    """Return the wanted port, or the next free one. Skip the port `taken`."""
    last = min(wanted + MAX_PORTS_TRIED - 1, MAX_PORT)
    for port in range(wanted, last + 1):
        if port == taken:
            continue
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((HOST, port))
            except OSError:
                continue
        if port != wanted:
            click.echo(f"Port {wanted} is in use, so {service} takes {port}.")
        return port
    raise click.ClickException(f"No port from {wanted} to {last} is free: choose another with {option}.")
