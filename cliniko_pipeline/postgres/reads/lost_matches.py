"""Matches of persons and contacts that would be lost: whether so many can be true."""

from dataclasses import dataclass

from sqlalchemy.engine import Connection

from cliniko_pipeline.errors import LostMatchesError
from cliniko_pipeline.postgres.engine import sql, statement

MIN_SUSPICIOUS = 10
"""Fewer lost matches are believed, whatever their share: in a small clinic one is a large one."""


@dataclass(frozen=True)
class LostMatches:
    """How many of the matches are lost; `has_lost_all_contacts`: there were some, and there is no contact any more."""

    matched: int
    lost: int
    has_lost_all_contacts: bool

    def is_suspicious(self, limit: float) -> bool:
        """Return whether they are more than is believed; `limit` is a share from 0 to 1."""
        return self.has_lost_all_contacts or (self.lost >= MIN_SUSPICIOUS and self.lost > limit * self.matched)

    def require_believable(self, limit: float, organization_id: str) -> None:
        """Raise LostMatchesError where they are suspicious."""
        if not self.is_suspicious(limit):
            return
        what = "The organization has no contact any more, though it had some: " if self.has_lost_all_contacts else ""
        raise LostMatchesError(
            f"{what}{self.lost} of {self.matched} matches of patients and contacts would be lost, more than is believed"
            " (CLINIKO_LOST_MATCHES_SHARE_LIMIT). contact_mapping and active_patients were left as they were. Restore"
            " the contacts (public.contacts), and the next sync goes on by itself; if it is true, run"
            f" `cliniko-pipeline sync {organization_id} --accept-unmatched`."
        )


def of_computed_mapping(connection: Connection) -> LostMatches:
    """Return what the mapping that was computed into the staging table would lose of the stored one."""
    return LostMatches(**connection.execute(statement(sql("checks/lost_matches"))).mappings().one())


def of_stored_mapping(connection: Connection) -> LostMatches:
    """Return which of the stored matches have lost their contact."""
    return LostMatches(**connection.execute(statement(sql("checks/matches_without_contact"))).mappings().one())
