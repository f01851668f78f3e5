"""`cliniko-pipeline`: the commands, and how every one of them ends when something is wrong."""

import logging
import os
import signal
import sys
from importlib import import_module

import click

from cliniko_pipeline.errors import ClinikoPipelineError

COMMANDS = {
    "alerts": "cliniko_pipeline.cli.alerts:alerts",
    "api": "cliniko_pipeline.cli.services.api:api",
    "backfill": "cliniko_pipeline.cli.runs.backfill:backfill",
    "credentials": "cliniko_pipeline.cli.credentials:credentials",
    "demo": "cliniko_pipeline.cli.services.demo:demo",
    "doctor": "cliniko_pipeline.cli.doctor:doctor",
    "explain": "cliniko_pipeline.cli.explain.command:explain",
    "migrate": "cliniko_pipeline.cli.migrate:migrate",
    "organizations": "cliniko_pipeline.cli.organizations:organizations",
    "sandbox": "cliniko_pipeline.cli.services.sandbox:sandbox",
    "status": "cliniko_pipeline.cli.status:status",
    "sync": "cliniko_pipeline.cli.runs.sync:sync",
    "tokens": "cliniko_pipeline.cli.tokens:tokens",
    "ui": "cliniko_pipeline.cli.services.ui:ui",
    "webhooks": "cliniko_pipeline.cli.webhooks:webhooks",
}


class _LazyGroup(click.Group):
    """Imports a command when it is used: `status` must not wait for Dagster."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 (click's signature)
        return sorted(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        if cmd_name not in COMMANDS:
            return None
        module, _, name = COMMANDS[cmd_name].partition(":")
        return getattr(import_module(module), name)


@click.group(cls=_LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="cliniko_pipeline")
@click.option("--debug", is_flag=True, help="Show the traceback of an unexpected error.")
@click.pass_context
def cli(context: click.Context, *, debug: bool) -> None:
    """Active patients of many Cliniko clinics, kept current in your own PostgreSQL."""
    context.obj = debug


def main() -> None:
    """The entry point.

    Exit code 0: done; 1: something is wrong, one line on stderr says what; 2: wrong usage; 130: interrupted.
    """
    _end_in_order_on_signals()
    # An interruption may hit a connection in the middle of a statement: the pool drops it, and need not tell.
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
    except BrokenPipeError:  # whoever read the output has gone, as `| head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except Exception as error:
        if debug:
            raise
        click.echo(f"Error: {_of_this_machine(error) if isinstance(error, OSError) else _defect(error)}", err=True)
        sys.exit(1)


def _end_in_order_on_signals() -> None:
    """Lets every signal that ends a program do so as Ctrl-C does: what was started is ended too."""
    signals = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

    def interrupt(_signal: int, _frame: object) -> None:
        # The end takes a moment, and waits for nothing without a limit: a second signal would cut it short.
        for each in signals:
            signal.signal(each, lambda _signal, _frame: None)
        raise KeyboardInterrupt

    for each in signals:
        if signal.getsignal(each) is not signal.SIG_IGN:  # nohup
            signal.signal(each, interrupt)


def _of_this_machine(error: OSError) -> str:
    """What to say of a file or folder that cannot be used, or whatever else this machine refuses."""
    reason = error.strerror or type(error).__name__
    if not isinstance(error.filename, str):
        return f"this machine refuses ({reason}); `cliniko-pipeline --debug ...` shows what."
    return (
        f"{error.filename} cannot be used ({reason}): CLINIKO_PIPELINE_HOME (default: .cliniko here) and DAGSTER_HOME"
        " must be folders that can be written."
    )


def _defect(error: Exception) -> str:
    # Its text may hold anything, so it is shown on demand only.
    return (
        f"an unexpected {type(error).__name__}; this is a defect."
        " `cliniko-pipeline --debug ...` shows where (mind that a traceback can hold data)."
    )
