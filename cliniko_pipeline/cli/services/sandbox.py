"""`cliniko-pipeline sandbox`: a simulated Cliniko with the organizations of the demo."""

import signal
import threading
from collections.abc import Generator
from contextlib import contextmanager
from datetime import UTC, datetime
from types import FrameType

import click

from cliniko_pipeline.errors import ClinikoPipelineError
from cliniko_pipeline.hosts import is_loopback
from cliniko_pipeline.instants import parse_instant
from cliniko_pipeline.sandbox.accounts.demo import demo_organizations
from cliniko_pipeline.sandbox.faults import Faults
from cliniko_pipeline.sandbox.server import DEFAULT_REQUESTS_PER_MINUTE, Sandbox, running_sandbox

_RATE = click.FloatRange(0, 1)


@click.command()
@click.option("--host", default="127.0.0.1", show_default=True, help="Loopback address.")
@click.option("--allow-remote", is_flag=True, help="Accept a --host that other machines can reach.")
@click.option("--port", default=8765, show_default=True, type=click.IntRange(0, 65535), help="Use 0 for a free port.")
@click.option(
    "--requests-per-minute",
    default=DEFAULT_REQUESTS_PER_MINUTE,
    show_default=True,
    type=click.IntRange(0),
    help="Rate limit of each API key. Use 0 for no limit.",
)
@click.option(
    "--anchor",
    metavar="INSTANT",
    help="Instant around which the data is generated (2026-01-31T09:00:00Z). The default is now.",
)
@click.option("--seed", default=0, show_default=True, help="Seed of the random faults.")
@click.option("--latency-ms", default=0.0, type=click.FloatRange(0), help="Delay of each response.")
@click.option("--jitter-ms", default=0.0, type=click.FloatRange(0), help="Maximum additional random delay.")
@click.option("--server-error-rate", default=0.0, type=_RATE, help="Share of responses with status 500, 502 or 503.")
@click.option("--reset-rate", default=0.0, type=_RATE, help="Share of connections that are reset.")
@click.option("--truncated-rate", default=0.0, type=_RATE, help="Share of response bodies that end early.")
@click.option("--html-rate", default=0.0, type=_RATE, help="Share of responses with an HTML page.")
@click.option("--too-many-requests-rate", default=0.0, type=_RATE, help="Share of responses with status 429.")
def sandbox(  # noqa: PLR0913 - one argument per option
    *,
    host: str,
    allow_remote: bool,
    port: int,
    requests_per_minute: int,
    anchor: str | None,
    seed: int,
    latency_ms: float,
    jitter_ms: float,
    server_error_rate: float,
    reset_rate: float,
    truncated_rate: float,
    html_rate: float,
    too_many_requests_rate: float,
) -> None:
    """Serve a simulated Cliniko until Ctrl-C.

    It has three made-up clinics. Processes on this machine can inspect and control it:
    GET /sandbox/counters, GET and PUT /sandbox/faults, GET /sandbox/accounts/NAME.
    """
    if not allow_remote and not is_loopback(host):
        raise click.UsageError("--host is not a loopback address; add --allow-remote to accept it.")
    try:
        organizations = demo_organizations(datetime.now(UTC) if anchor is None else parse_instant(anchor))
        faults = Faults(
            seed=seed,
            latency_ms=latency_ms,
            jitter_ms=jitter_ms,
            server_error_rate=server_error_rate,
            reset_before_body_rate=reset_rate / 2,
            reset_in_body_rate=reset_rate / 2,
            truncated_body_rate=truncated_rate,
            html_ok_rate=html_rate / 2,
            html_bad_gateway_rate=html_rate / 2,
            too_many_requests_rate=too_many_requests_rate,
        )
        with (
            _until_signal() as ended,
            running_sandbox(
                [organization.account for organization in organizations],
                host=host,
                port=port,
                requests_per_minute=requests_per_minute or None,
                faults=faults,
            ) as served,
        ):
            _introduce(served)
            ended.wait()
    except ClinikoPipelineError as error:
        raise click.ClickException(str(error)) from error
    click.echo(f"Ended after {served.counters.requests():,} requests.")


def _introduce(served: Sandbox) -> None:
    click.echo(f"The simulated Cliniko serves made-up clinics at http://{served.host} until Ctrl-C.")
    for account in served.accounts.values():
        click.echo(f"{account.name}\n  API URL  {served.base_url(account)}\n  API key  {account.api_key}")


@contextmanager
def _until_signal() -> Generator[threading.Event]:
    """Yield an event that SIGINT and SIGTERM set while the block runs."""
    ended = threading.Event()

    def end(_number: int, _frame: FrameType | None) -> None:
        ended.set()

    previous = {number: signal.signal(number, end) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield ended
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
