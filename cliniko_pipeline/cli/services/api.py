"""`cliniko-pipeline api`: the HTTP API and its page."""

import logging
import socket

import click
import uvicorn

from cliniko_pipeline.api.application import create_application
from cliniko_pipeline.api.serving import server_configuration
from cliniko_pipeline.cli.session import session

HOST = "127.0.0.1"
PORT = 8000


@click.command()
@click.option("--host", default=HOST, show_default=True, help="0.0.0.0 opens the API to the network. Use a TLS proxy.")
@click.option("--port", type=click.IntRange(0, 65535), default=PORT, show_default=True)
def api(host: str, port: int) -> None:
    """Serve the HTTP API and its page until Ctrl-C."""
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    with _listening(host, port) as listener, session() as runtime:
        configuration = server_configuration(create_application(runtime), runtime.settings)
        click.echo(f"The API and its page: http://{_shown(listener)}")
        uvicorn.Server(configuration).run(sockets=[listener])


def _listening(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family)
    except OSError as error:
        raise click.ClickException(
            f"Cannot listen on {host}, port {port} ({error.strerror}): choose others with --host and --port."
        ) from None


def _shown(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
