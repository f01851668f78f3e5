"""`cliniko-pipeline api`: the HTTP service."""

import logging

import click
import uvicorn

from cliniko_pipeline.api.application import create_application
from cliniko_pipeline.cli.session import session

HOST = "127.0.0.1"
PORT = 8000
SECONDS_TO_END = 10


@click.command()
@click.option(
    "--host", default=HOST, show_default=True, help="0.0.0.0 opens it to the network: put a proxy with TLS before it."
)
@click.option("--port", type=click.IntRange(0, 65535), default=PORT, show_default=True)
def api(host: str, port: int) -> None:
    """Serve the HTTP API and its page until Ctrl-C."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    # Requests to Dagster and to an issuer are no news.
    logging.getLogger("httpx").setLevel(logging.WARNING)
    with session() as runtime:
        configuration = uvicorn.Config(
            create_application(runtime),
            host=host,
            port=port,
            log_config=None,
            # What is asked for names organizations and contacts.
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=SECONDS_TO_END,
        )
        uvicorn.Server(configuration).run()
