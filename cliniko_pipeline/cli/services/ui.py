"""`cliniko-pipeline ui`: the Dagster UI and daemon on this machine, and the HTTP API with its page where wanted."""

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
PORTS_TRIED = 50
LAST_PORT = 65535
STOP_SECONDS = 20
SECONDS_BETWEEN_LOOKS = 0.2


@click.command()
@click.option(
    "--port",
    type=click.IntRange(1, LAST_PORT),
    default=PORT,
    show_default=True,
    help="Another is taken where this is in use.",
)
@click.option(
    "--api-port",
    type=click.IntRange(1, LAST_PORT),
    help="Serve the HTTP API and its page too, here or, where this is in use, at another port.",
)
def ui(port: int, api_port: int | None) -> None:
    """Serve the Dagster UI, with its daemon, on this machine until Ctrl-C."""
    with session() as runtime:
        # Dagster's daemon notes when it did what: after a jump of its clock it would do nothing for as long.
        runtime.machine_clock().require_allowed()
        serve(runtime, port, api_port=api_port)


@dataclass(frozen=True)
class _Served:
    """A process that goes on until it is ended, and what to say where it ends before that."""

    command: Sequence[str]
    environment: Mapping[str, str]
    ended: str


def serve(
    runtime: Runtime,
    port: int = PORT,
    *,
    api_port: int | None = None,
    log_in: str = "log in with a token of `cliniko-pipeline tokens create`",
) -> None:
    """Runs `dagster dev` until Ctrl-C or SIGTERM, and the API beside it where it has a port, then ends both and all
    they started. `log_in` tells how to log in on the page.
    """
    from cliniko_pipeline.orchestration.instance.home import instance_environment, open_instance  # noqa: PLC0415
    from cliniko_pipeline.orchestration.partitions import ensure_partitions  # noqa: PLC0415
    from cliniko_pipeline.orchestration.runs.in_process import end_abandoned_runs  # noqa: PLC0415

    with runtime.database.operator() as connection:
        ids = [each.id for each in stored.organizations(connection) if each.is_active]
    with open_instance(runtime) as instance:
        ensure_partitions(instance, ids)
        for organization_id in ids:
            end_abandoned_runs(instance, runtime, organization_id)
    # Dagster says at every start that another command of its own is the newer one.
    environment = os.environ | instance_environment(runtime) | {"PYTHONWARNINGS": "ignore"}
    free = _free_port(port, "the UI", "--port")
    address = f"http://{HOST}:{free}"
    # Where nothing else is set, this is where the links in alerts lead.
    environment.setdefault("CLINIKO_UI_URL", address)
    with resources.as_file(resources.files("cliniko_pipeline") / "orchestration" / "workspace.yaml") as workspace:
        served = [_dagster(workspace, free, environment)]
        if api_port is not None:
            api_free = _free_port(api_port, "the API", "--api-port", taken=free)
            served.append(_api(api_free, environment | {"API_DAGSTER_URL": address}))
            click.echo(f"Page: http://{HOST}:{api_free} ({log_in})")
        click.echo(f"Dagster UI: {address} (answers in a few seconds; Ctrl-C ends it)")
        _run_until_stopped(served)


def _dagster(workspace: Path, port: int, environment: Mapping[str, str]) -> _Served:
    # `dagster dev` itself serves the UI to every web page that is open on this machine.
    command = [
        sys.executable,
        "-m",
        "cliniko_pipeline.orchestration.webserver",
        "dev",
        "--workspace",
        str(workspace),
    ]
    return _Served(
        [*command, "--host", HOST, "--port", str(port), "--log-level", "warning"],
        environment,
        # It ends when its daemon or webserver does, with exit code 0, and has said why in many lines.
        "Dagster has ended by itself, or was killed. Start this again: what was under way is then repeated by itself.",
    )


def _api(port: int, environment: Mapping[str, str]) -> _Served:
    command = [sys.executable, "-c", "from cliniko_pipeline.cli.main import main; main()", "api"]
    return _Served(
        [*command, "--host", HOST, "--port", str(port)],
        environment,
        "The API has ended by itself, or was killed, and Dagster was ended with it. Start this again: what was under"
        " way is then repeated by itself.",
    )


def _run_until_stopped(served: Sequence[_Served]) -> None:
    started: list[subprocess.Popen[bytes]] = []
    try:
        for each in served:
            # A session of its own: Ctrl-C reaches us alone, and we end each whole group in order.
            process = subprocess.Popen(each.command, env=each.environment, start_new_session=True)  # noqa: S603
            started.append(process)
        while all(process.poll() is None for process in started):
            time.sleep(SECONDS_BETWEEN_LOOKS)
        said = next(each.ended for each, process in zip(served, started, strict=True) if process.poll() is not None)
    except KeyboardInterrupt:
        click.echo("Stopping ...")
        return
    finally:
        _end_groups(started)
    raise click.ClickException(said)


def _end_groups(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    """Ends the processes and all they started that stayed in their groups, those started last first."""
    left = list(reversed(processes))
    for sign in (signal.SIGINT, signal.SIGTERM, signal.SIGKILL):
        left = [process for process in left if _signalled(process, sign)]
        until = time.monotonic() + STOP_SECONDS
        for process in left:
            with suppress(subprocess.TimeoutExpired):
                process.wait(max(until - time.monotonic(), 0))


def _signalled(process: subprocess.Popen[bytes], sign: signal.Signals) -> bool:
    """Whether there was still something in its group to be told."""
    try:
        os.killpg(process.pid, sign)
    except ProcessLookupError:
        return False
    return True


def _free_port(wanted: int, whose: str, option: str, *, taken: int | None = None) -> int:
    """The port, or the next one that is free; `taken` is as good as in use."""
    last = min(wanted + PORTS_TRIED - 1, LAST_PORT)
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
            click.echo(f"Port {wanted} is in use, so {whose} takes {port}.")
        return port
    raise click.ClickException(f"No free port from {wanted} to {last}: name another with {option}.")
