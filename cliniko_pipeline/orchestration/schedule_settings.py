"""The default schedule, as configured by the settings."""

from datetime import timedelta

from cliniko_pipeline.orchestration.plans.due_syncs import DefaultSchedule
from cliniko_pipeline.settings import Settings


def default_schedule(settings: Settings) -> DefaultSchedule:
    """Return the schedule of organizations that have no schedule of their own."""
    return DefaultSchedule(
        sync_every_minutes=settings.sync_every_minutes or None,
        full_sync_at=settings.full_sync_at,
        full_sync_spread=timedelta(minutes=settings.full_sync_spread_minutes),
    )
