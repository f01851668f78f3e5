"""`cliniko-pipeline ui`: the Dagster UI and daemon on this machine."""

import os
import signal
import socket
import subprocess
import sys
from importlib import resources
from pathlib import Path

import click

from cliniko_pipeline.cli.session import session
from cliniko_pipeline.postgres import organizations as stored
from cliniko_pipeline.runtime import Runtime

HOST = "127.0.0.1"
PORT = 3000
PORTS_TRIED = 50
LAST_PORT = 65535
STOP_SECONDS = 20


@click.command()
@click.option(
    "--port",
    type=click.IntRange(1, LAST_PORT),
    default=PORT,
    show_default=True,
    help="Another is taken where this is in use.",
)
def ui(port: int) -> None:
    """Serve the Dagster UI, with its daemon, on this machine until Ctrl-C."""
    with session() as runtime:
        serve(runtime, port)


def serve(runtime: Runtime, port: int = PORT) -> None:
    """Runs `dagster dev` until Ctrl-C or SIGTERM, then ends it and all it started."""
    from cliniko_pipeline.orchestration.instance import instance_environment, open_instance  # noqa: PLC0415
    from cliniko_pipeline.orchestration.partitions import ensure_partitions  # noqa: PLC0415
    from cliniko_pipeline.orchestration.runs import end_abandoned_runs  # noqa: PLC0415

    with runtime.database.operator() as connection:
        ids = [each.id for each in stored.organizations(connection) if each.is_active]
    with open_instance(runtime) as instance:
        ensure_partitions(instance, ids)
        for organization_id in ids:
            end_abandoned_runs(instance, runtime, organization_id)
    # Dagster says at every start that another command of its own is the newer one.
    environment = os.environ | instance_environment(runtime) | {"PYTHONWARNINGS": "ignore"}
    free = _free_port(port)
    if free != port:
        click.echo(f"Port {port} is in use, so the UI takes {free}.")
    address = f"http://{HOST}:{free}"
    # Where nothing else is set, this is where the links in alerts lead.
    environment.setdefault("CLINIKO_UI_URL", address)
    click.echo(f"Dagster UI: {address} (answers in a few seconds; Ctrl-C ends it)")
    with resources.as_file(resources.files("cliniko_pipeline") / "orchestration" / "workspace.yaml") as workspace:
        _run_until_stopped(_command(workspace, free), environment)


def _command(workspace: Path, port: int) -> list[str]:
    dagster = [sys.executable, "-m", "dagster", "dev"]
    return [*dagster, "--workspace", str(workspace), "--host", HOST, "--port", str(port), "--log-level", "warning"]


def _run_until_stopped(command: list[str], environment: dict[str, str]) -> None:
    # A session of its own: Ctrl-C reaches us alone, and we end the whole group in order.
    process = subprocess.Popen(command, env=environment, start_new_session=True)  # noqa: S603 (no shell)
    try:
        process.wait()
    except KeyboardInterrupt:
        click.echo("Stopping ...")
        return
    finally:
        _end_group(process)
    # It ends when its daemon or webserver does, with exit code 0, and has said why in many lines.
    raise click.ClickException(
        "Dagster has ended by itself, or was killed. Start this again: what was under way is then repeated by itself."
    )


def _end_group(process: subprocess.Popen[bytes]) -> None:
    """Ends the process and all it started that stayed in its group."""
    for sign in (signal.SIGINT, signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, sign)
            process.wait(STOP_SECONDS)
        except ProcessLookupError:
            return
        except subprocess.TimeoutExpired:
            continue


def _free_port(wanted: int) -> int:
    last = min(wanted + PORTS_TRIED - 1, LAST_PORT)
    for port in range(wanted, last + 1):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((HOST, port))
            except OSError:
                continue
            return port
    raise click.ClickException(f"No free port from {wanted} to {last}: name another with --port.")
