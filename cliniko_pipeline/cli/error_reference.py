"""Generator of docs/errors.md. Run the module with `python -m` to print the page."""

from collections.abc import Iterable, Sequence

import click

from cliniko_pipeline.api.problems import MEANINGS
from cliniko_pipeline.cliniko.crawling.refusals import WITHOUT_FILTER, WITHOUT_SORT
from cliniko_pipeline.cliniko.exchange.retry import documented_rules
from cliniko_pipeline.postgres.server.faults import CONNECTING, STATEMENTS, named
from cliniko_pipeline.postgres.server.faults import Fault as DatabaseFault

_HEAD = """# Errors

Generated from the code by `make errors`: change the code, not this page.

Syncs that end with `RateLimitedError` or an error named `...UnavailableError` are retried automatically.
For every other error, do what its message says.
"""

_DATABASE = """
## PostgreSQL: connecting

An error is recognized by its SQLSTATE. If it has no SQLSTATE, it is recognized by words of the driver or the pooler
(regular expressions).
"""

_STATEMENTS = """
## PostgreSQL: statements

If two entries match an SQLSTATE, the longer entry applies. Messages have the names of the objects in place of the
words in capitals, and the name of the role.
"""


def render() -> str:
    """Return the page."""
    return "".join(
        (
            _HEAD,
            _DATABASE,
            table(("what happened", "what to do", "SQLSTATE", "words"), map(_connecting, CONNECTING)),
            _STATEMENTS,
            table(("what happened", "what to do", "SQLSTATE", "error"), map(_statement, STATEMENTS)),
            "\n## Cliniko\n",
            table(("status", "what it means and what to do", "error"), map(_answer, documented_rules())),
            "\nIf Cliniko refuses a field, it is omitted until the next full sync. `status` and `doctor` report it.\n",
            table(("refused", "consequence"), _refused_fields()),
            "\n## The HTTP API\n\nErrors are problem details (RFC 9457), and `detail` has the specific cause.\n",
            table(("status", "meaning"), ((str(status), meaning) for status, meaning in MEANINGS.items())),
        )
    )


def _connecting(fault: DatabaseFault) -> tuple[str, ...]:
    return fault.cause, fault.remedy, ", ".join(fault.states), ", ".join(f"`{words}`" for words in fault.words if words)


def _statement(fault: DatabaseFault) -> tuple[str, ...]:
    remedy = named(f"{fault.remedy} If that was done: {fault.otherwise}" if fault.otherwise else fault.remedy, {})
    return fault.cause, remedy, ", ".join(fault.states) or "any other", fault.kind.__name__


def _answer(rule: tuple[str, str, str]) -> tuple[str, ...]:
    status, error, meaning = rule
    return status, meaning, error


def _refused_fields() -> list[tuple[str, str]]:
    filters = [(f"to filter by `{name}`", consequence) for name, consequence in WITHOUT_FILTER.items()]
    return [("to sort by `id`", WITHOUT_SORT), *filters]


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a blank line and a Markdown table."""
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n" + "".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |\n" for line in lines)


if __name__ == "__main__":
    click.echo(render(), nl=False)
