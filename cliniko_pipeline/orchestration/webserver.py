"""Dagster's webserver behind `ui_guard`, and `dagster dev` with that webserver.

`python -m cliniko_pipeline.orchestration.webserver` takes the options of `dagster-webserver`. With `dev` in front, it
takes the options of `dagster dev`. Do not rename this module, because process supervisors start it by name.
"""

import sys
from collections.abc import Sequence
from typing import Any
from urllib.parse import urlsplit

from dagster._cli import dev
from dagster_shared.ipc import open_ipc_subprocess
from dagster_webserver import cli
from starlette.types import ASGIApp

from cliniko_pipeline.errors import ClinikoPipelineError
from cliniko_pipeline.orchestration.instance.ui_guard import GuardedUI
from cliniko_pipeline.settings import Settings, load_settings

MODULE = "cliniko_pipeline.orchestration.webserver"
THEIR_MODULE = "dagster_webserver"


def main(arguments: Sequence[str]) -> None:
    """Serve until interrupted."""
    if arguments[:1] == ["dev"]:
        dev.open_ipc_subprocess = _started  # pyright: ignore[reportPrivateImportUsage]
        dev.dev_command(arguments[1:], prog_name="dagster dev")
    else:
        hosts = ui_hosts(load_settings())
        dagster_cli: Any = cli
        create_app = dagster_cli.create_app_from_workspace_process_context

        def guarded(*args: Any, **options: Any) -> ASGIApp:
            return GuardedUI(create_app(*args, **options), hosts)

        # Dagster has no hook for a middleware, so its factory of the application is wrapped.
        dagster_cli.create_app_from_workspace_process_context = guarded
        cli.dagster_webserver(arguments, prog_name="dagster-webserver", auto_envvar_prefix="DAGSTER_WEBSERVER")


def ui_hosts(settings: Settings) -> frozenset[str]:
    """Return the hosts at which browsers, proxies and the API reach the UI, from the settings."""
    return settings.ui_hosts | {urlsplit(url).netloc.lower() for url in (settings.ui_url, settings.dagster_url)}


def _started(command: Sequence[str], **options: Any) -> Any:
    """Start a process for `dagster dev`. Start the guarded webserver in place of Dagster's."""
    return open_ipc_subprocess([MODULE if word == THEIR_MODULE else word for word in command], **options)


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except ClinikoPipelineError as error:
        sys.exit(f"Error: {error}")
