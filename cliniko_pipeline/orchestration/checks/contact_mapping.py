"""The asset checks of `contact_mapping`."""

import dagster as dg

from cliniko_pipeline.orchestration.assets.contact_mapping import contact_mapping
from cliniko_pipeline.orchestration.assets.values import MATCHES_ARE_KEPT
from cliniko_pipeline.orchestration.checks.definitions import (
    REUSED,
    Check,
    CheckedOrganization,
    CheckOutcome,
    define_checks,
)
from cliniko_pipeline.postgres.reads import check_queries


def _no_contact_is_used_twice(checked: CheckedOrganization) -> CheckOutcome:
    counts, is_reused = check_queries.mapping_counts(checked.connection, force=checked.force)
    twice = counts.contacts_used_twice
    remark = f"{twice} contacts are used for more than one person." if twice else "Each contact is used for one person."
    return CheckOutcome(not twice, remark, {"contacts_used_twice": twice, REUSED: is_reused})


def _matches_are_kept(checked: CheckedOrganization) -> CheckOutcome:
    matches, is_reused = check_queries.kept_matches(checked.connection, force=checked.force)
    remark = f"{matches.lost} of {matches.matched} matched contacts no longer exist."
    passed = not matches.is_suspicious(checked.runtime.settings.lost_matches_share_limit)
    return CheckOutcome(passed, remark, {"matched": matches.matched, "lost": matches.lost, REUSED: is_reused})


def _unmatched_share_is_below_the_limit(checked: CheckedOrganization) -> CheckOutcome:
    counts, is_reused = check_queries.mapping_counts(checked.connection, force=checked.force)
    share, limit = counts.unmatched_share, checked.runtime.settings.unmatched_share_limit
    remark = (
        f"{counts.current_unmatched} of {counts.current_people} current people have no contact"
        f" ({share:.0%}; the limit is {limit:.0%})."
    )
    numbers = {"unmatched": counts.current_unmatched, "unmatched_share": round(share, 4), REUSED: is_reused}
    return CheckOutcome(share <= limit, remark, numbers)


CONTACT_MAPPING_CHECKS = define_checks(
    "check_contact_mapping",
    [
        Check(
            contact_mapping,
            "no_contact_is_used_twice",
            "No contact is used for two people, who would see each other's appointments. If the check fails,"
            " active_patients stays unchanged.",
            dg.AssetCheckSeverity.ERROR,
            _no_contact_is_used_twice,
            is_blocking=True,
        ),
        Check(
            contact_mapping,
            MATCHES_ARE_KEPT,
            "A sync loses fewer than ten matches, or at most the share CLINIKO_LOST_MATCHES_SHARE_LIMIT, and some"
            " contacts remain. If the check fails, contact_mapping and active_patients stay unchanged.",
            dg.AssetCheckSeverity.ERROR,
            _matches_are_kept,
            is_blocking=True,
        ),
        Check(
            contact_mapping,
            "unmatched_share_is_below_the_limit",
            "The share of people without a contact is at most CLINIKO_UNMATCHED_SHARE_LIMIT.",
            dg.AssetCheckSeverity.WARN,
            _unmatched_share_is_below_the_limit,
        ),
    ],
)
