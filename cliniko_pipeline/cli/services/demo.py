"""`cliniko-pipeline demo`: made-up clinics, synced into an embedded database, with UI and page."""

import os
import shlex
from collections.abc import Generator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import click
import sqlalchemy as sa

from cliniko_pipeline.cli.runs.sync import report, run_syncs
from cliniko_pipeline.cli.services.ui import serve
from cliniko_pipeline.cli.session import session
from cliniko_pipeline.credentials.vault import ClinikoCredentials
from cliniko_pipeline.postgres.engine import sql
from cliniko_pipeline.postgres.operator_tables import api_tokens
from cliniko_pipeline.postgres.operator_tables import organizations as stored
from cliniko_pipeline.runtime import Runtime
from cliniko_pipeline.sandbox.accounts.demo import DemoOrganization, demo_organizations
from cliniko_pipeline.sandbox.server import DEFAULT_REQUESTS_PER_MINUTE, Sandbox, running_sandbox
from cliniko_pipeline.settings import load_settings

# Older data is replaced. Otherwise the made-up clinics would have no recent appointments after some time.
MAX_ANCHOR_AGE = timedelta(days=1)
TOKEN_LIFETIME = timedelta(days=1)
PAGE_PORT = 8000
HIDDEN_VARIABLES = ("DATABASE_URL", "DAGSTER_HOME", "CREDENTIALS_ENCRYPTION_KEY")


@click.command()
@click.option("--no-ui", is_flag=True, help="End after the summary.")
def demo(*, no_ui: bool) -> None:
    """Sync three made-up clinics and serve the UI.

    The demo has its own simulated Cliniko and embedded database, and needs no setup.
    """
    # The demo has its own home and database, so that made-up clinics never mix with real ones.
    home = load_settings({**os.environ, "DATABASE_URL": ""}).home / "demo"
    anchor, is_new = _anchor(home / "demo-anchor")
    clinics = demo_organizations(anchor)
    with (
        running_sandbox(
            [clinic.account for clinic in clinics], requests_per_minute=DEFAULT_REQUESTS_PER_MINUTE
        ) as sandbox,
        _environment(sandbox, home),
        session() as runtime,
    ):
        click.echo(f"Simulated Cliniko: http://{sandbox.host}; database: {runtime.database.location}.")
        for clinic in clinics:
            _set_up(runtime, sandbox, clinic, is_new=is_new)
        ids = [clinic.id for clinic in clinics]
        errors = run_syncs(runtime, ids)
        report(runtime, ids, errors)
        click.echo(
            "To run other commands on the demo, set"
            f" CLINIKO_PIPELINE_HOME={shlex.quote(str(home))} CLINIKO_ALLOWED_HOSTS={sandbox.host}"
        )
        if not no_ui:
            serve(runtime, api_port=PAGE_PORT, log_in=f"token: {_token(runtime, ids)}")
    raise SystemExit(1 if errors else 0)


def _set_up(runtime: Runtime, sandbox: Sandbox, clinic: DemoOrganization, *, is_new: bool) -> None:
    if is_new:
        stored.delete_tenant_rows(runtime.database, clinic.id)
    credentials = ClinikoCredentials(clinic.account.api_key, None, sandbox.base_url(clinic.account))
    with runtime.client_for(clinic.id, credentials) as client:
        client.validate()
    with runtime.database.operator() as connection:
        stored.save(connection, clinic.id, clinic.name, runtime.vault.encrypt(credentials), validated=True)
        connection.execute(sa.text(sql("demo/save_contact")), clinic.contacts)


def _token(runtime: Runtime, ids: list[str]) -> str:
    """Create a token for the page. The caller may print it, because the clinics are made up."""
    expires_at = datetime.now(UTC) + TOKEN_LIFETIME
    with runtime.database.operator() as connection:
        made = api_tokens.create(connection, "demo", scopes=["read", "sync"], organizations=ids, expires_at=expires_at)
    return made.text


def _anchor(path: Path) -> tuple[datetime, bool]:
    """Return the instant around which the clinics' data is generated, and whether the instant is new."""
    now = datetime.now(UTC)
    try:
        kept = datetime.fromisoformat(path.read_text(encoding="utf-8").strip())
    except (OSError, ValueError):
        kept = None
    if kept is not None and timedelta(0) <= now - kept < MAX_ANCHOR_AGE:
        return kept, False
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(now.isoformat(), encoding="utf-8")
    return now, True


@contextmanager
def _environment(sandbox: Sandbox, home: Path) -> Generator[None, None, None]:
    """Set environment variables, so that this process and its children use the demo's home and sandbox."""
    ignored = [name for name in HIDDEN_VARIABLES if os.environ.pop(name, "")]
    if ignored:
        click.echo(f"The demo ignores {', '.join(ignored)} and uses an embedded database.")
    os.environ["CLINIKO_ALLOWED_HOSTS"] = sandbox.host
    os.environ["CLINIKO_PIPELINE_HOME"] = str(home)
    yield
