"""The request budget of each API key, shared by all processes."""

from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

CREATE_TABLES = """
-- The operator's own: no organization is named, and a key only by a digest that does not give it away.
create table cliniko.request_budgets (
    key_digest text primary key,
    -- Nobody may send before: Cliniko said so (429).
    blocked_until timestamptz not null default '-infinity',
    last_ticket bigint not null default 0,
    -- What counts: each ticket allows so many requests, and counts until a window after the last of them was answered;
    -- as long as that is not known, until a window after it can have been.
    tickets bigint[] not null default '{}',
    requests integer[] not null default '{}',
    count_until timestamptz[] not null default '{}'
);
"""


def upgrade() -> None:
    """Creates what budgets need; nothing is there before."""
    op.execute(CREATE_TABLES)
