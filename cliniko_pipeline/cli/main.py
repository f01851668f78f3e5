"""The program `cliniko-pipeline`, with its commands, error messages and exit codes."""

import gc
import logging
import os
import signal
import sys
from importlib import import_module

import click

from cliniko_pipeline.errors import ClinikoPipelineError

ALLOCATIONS_BETWEEN_COLLECTIONS = 100_000
"""The default of 700 makes Python look for garbage during imports, where there is none, for a fifth of a second."""

COMMANDS = {
    "alerts": ("cliniko_pipeline.cli.alerts:alerts", "Show open alerts and test the channels."),
    "api": ("cliniko_pipeline.cli.services.api:api", "Serve the HTTP API and its page until Ctrl-C."),
    "backfill": (
        "cliniko_pipeline.cli.runs.backfill:backfill",
        "Sync organizations in one backfill of Dagster's daemon.",
    ),
    "credentials": ("cliniko_pipeline.cli.credentials:credentials", "Manage the encryption of stored credentials."),
    "demo": ("cliniko_pipeline.cli.services.demo:demo", "Sync three made-up clinics and serve the UI."),
    "doctor": ("cliniko_pipeline.cli.doctor:doctor", "Check everything that a sync needs."),
    "explain": (
        "cliniko_pipeline.cli.explain.command:explain",
        "Explain why a patient is active or not, and which contact matches, from stored data.",
    ),
    "migrate": ("cliniko_pipeline.cli.migrate:migrate", "Bring the database's schema up to date and rehearse a sync."),
    "organizations": (
        "cliniko_pipeline.cli.organizations:organizations",
        "Manage organizations, credentials and schedules.",
    ),
    "prune": (
        "cliniko_pipeline.cli.prune:prune",
        "Delete old runs, events and history, as the daemon does once a day.",
    ),
    "sandbox": ("cliniko_pipeline.cli.services.sandbox:sandbox", "Serve a simulated Cliniko until Ctrl-C."),
    "status": ("cliniko_pipeline.cli.status:status", "Show last syncs, counts and problems."),
    "sync": ("cliniko_pipeline.cli.runs.sync:sync", "Sync organizations, with progress."),
    "tokens": ("cliniko_pipeline.cli.tokens:tokens", "Create, list and revoke tokens of the HTTP API."),
    "ui": ("cliniko_pipeline.cli.services.ui:ui", "Serve the Dagster UI and daemon until Ctrl-C."),
    "webhooks": ("cliniko_pipeline.cli.webhooks:webhooks", "Manage incoming webhook events and outgoing deliveries."),
    "worker": (
        "cliniko_pipeline.cli.services.worker:worker",
        "Execute runs that the daemon sends over Celery, until SIGTERM.",
    ),
}
"""Module and short help of each command. With these, `--help` need not import the commands."""


class _LazyGroup(click.Group):
    """A group that imports a command only when it is used, so that `status` need not import Dagster."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 (click's signature)
        return sorted(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        if cmd_name not in COMMANDS:
            return None
        module, _, name = COMMANDS[cmd_name][0].partition(":")
        return getattr(import_module(module), name)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        with formatter.section("Commands"):
            formatter.write_dl([(name, COMMANDS[name][1]) for name in sorted(COMMANDS)])


@click.group(cls=_LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="cliniko_pipeline")
@click.option("--debug", is_flag=True, help="Show the traceback of an unexpected error.")
@click.pass_context
def cli(context: click.Context, *, debug: bool) -> None:
    """Active patients of many Cliniko clinics, kept current in your own PostgreSQL."""
    context.obj = debug


def main() -> None:
    """Run the command line.

    The exit code is 0 after success, 1 after an error (one line on stderr), 2 after wrong usage and 130 after Ctrl-C.
    """
    gc.set_threshold(ALLOCATIONS_BETWEEN_COLLECTIONS)
    _treat_signals_as_ctrl_c()
    # If Ctrl-C breaks off a statement, the pool drops the connection and would log an error.
    logging.getLogger("sqlalchemy.pool").setLevel(logging.CRITICAL)
    debug = "--debug" in sys.argv[1:]
    try:
        sys.exit(cli.main(standalone_mode=False))
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        click.echo("Interrupted.", err=True)
        sys.exit(130)
    except ClinikoPipelineError as error:
        click.echo(f"Error: {error}", err=True)
        sys.exit(1)
    except BrokenPipeError:  # the reader of the output has gone, as in `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except Exception as error:
        if debug:
            raise
        click.echo(
            f"Error: {_describe_os_error(error) if isinstance(error, OSError) else _describe_defect(error)}", err=True
        )
        sys.exit(1)


def _treat_signals_as_ctrl_c() -> None:
    """Raise KeyboardInterrupt on every terminating signal, so that the clean-up also ends child processes."""
    signals = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

    def interrupt(_signal: int, _frame: object) -> None:
        # Further signals are ignored, because they would break off the clean-up. The clean-up has a time limit.
        for number in signals:
            signal.signal(number, lambda _signal, _frame: None)
        raise KeyboardInterrupt

    for number in signals:
        if signal.getsignal(number) is not signal.SIG_IGN:  # nohup
            signal.signal(number, interrupt)


def _describe_os_error(error: OSError) -> str:
    reason = error.strerror or type(error).__name__
    if not isinstance(error.filename, str):
        return f"the operating system reports: {reason}. `cliniko-pipeline --debug ...` shows where."
    return (
        f"{error.filename} cannot be used ({reason}): CLINIKO_PIPELINE_HOME (default: .cliniko here) and DAGSTER_HOME"
        " must be folders that can be written."
    )


def _describe_defect(error: Exception) -> str:
    # The error's text may contain personal data, so it is shown only with --debug.
    return (
        f"an unexpected {type(error).__name__}; this is a defect."
        " `cliniko-pipeline --debug ...` shows where (the traceback can hold personal data)."
    )
