"""Generator of docs/configuration.md. Run the module with `python -m` to print the page."""

import click
from pydantic import BaseModel

from cliniko_pipeline.cli.error_reference import table
from cliniko_pipeline.settings.fields import GROUPS, variables

_HEAD = """# Configuration

Generated from the code by `make configuration`: change the code, not this page.

Settings are environment variables. A blank value counts as unset. The command `doctor` checks all of them.
A schedule set for one organization overrides the schedule settings: see
`cliniko-pipeline organizations schedule --help`.
"""


def render() -> str:
    """Return the page."""
    return _HEAD + "".join(map(_section, GROUPS))


def _section(group: type[BaseModel]) -> str:
    rows = (
        (f"`{variable.name}`", variable.meaning, variable.default, variable.values) for variable in variables(group)
    )
    title = (group.__doc__ or "").rstrip(".")
    return f"\n## {title}\n{table(('variable', 'meaning', 'default', 'values'), rows)}"


if __name__ == "__main__":
    click.echo(render(), nl=False)
