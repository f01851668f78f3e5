"""Lost matches of people and contacts, and the check that there are not suspiciously many."""

from dataclasses import dataclass

from sqlalchemy.engine import Connection

from cliniko_pipeline.errors import LostMatchesError
from cliniko_pipeline.postgres.engine import sql, statement

MIN_SUSPICIOUS = 10
"""If fewer matches are lost, their share is ignored. In a small clinic one is a large share."""


@dataclass(frozen=True)
class LostMatches:
    """The numbers of matches and lost matches, and whether matches exist without any contact."""

    matched: int
    lost: int
    has_lost_all_contacts: bool

    def is_suspicious(self, limit: float) -> bool:
        """Return whether suspiciously many matches are lost. `limit` is the allowed share, 0 to 1."""
        return self.has_lost_all_contacts or (self.lost >= MIN_SUSPICIOUS and self.lost > limit * self.matched)

    def require_believable(self, limit: float, organization_id: str) -> None:
        """Raise LostMatchesError if suspiciously many matches are lost."""
        if not self.is_suspicious(limit):
            return
        what = "The organization has no contact any more, though it had some. " if self.has_lost_all_contacts else ""
        why = "" if self.has_lost_all_contacts else ", more than CLINIKO_LOST_MATCHES_SHARE_LIMIT allows"
        raise LostMatchesError(
            f"{what}{self.lost} of {self.matched} matches of patients and contacts would be lost{why}. contact_mapping"
            " and active_patients were not changed. If contacts are missing from public.contacts by mistake, restore"
            " them, and the next sync succeeds. If they were removed on purpose, run"
            f" `cliniko-pipeline sync {organization_id} --accept-unmatched`."
        )


def of_computed_mapping(connection: Connection) -> LostMatches:
    """Count the stored matches that the new mapping in the staging table would lose."""
    return LostMatches(**connection.execute(statement(sql("checks/lost_matches"))).mappings().one())


def of_stored_mapping(connection: Connection) -> LostMatches:
    """Count the stored matches that have lost their contact."""
    return LostMatches(**connection.execute(statement(sql("checks/matches_without_contact"))).mappings().one())
