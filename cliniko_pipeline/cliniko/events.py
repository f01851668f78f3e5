"""What a client tells whoever shows its progress. Frozen, and without a patient's data; no behaviour here."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class PageRead:
    """A page arrived. `records` counts it without what was rejected; `budget_left` is the key's, right now."""

    resource: str
    number: int
    pages: int
    records: int
    total_entries: int
    budget_left: int


@dataclass(frozen=True, slots=True)
class Waiting:
    """Cliniko asked to wait (told before waiting), or the request budget made wait (told afterwards)."""

    seconds: float
    reason: str


@dataclass(frozen=True, slots=True)
class Retrying:
    """Attempt number `attempt` at `what` failed of `cause`; the next one follows in `seconds`."""

    what: str
    attempt: int
    seconds: float
    cause: str


Event = PageRead | Waiting | Retrying
