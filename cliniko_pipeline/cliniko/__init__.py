"""The Cliniko API client: everything that is read from Cliniko, and how it is asked for.

Knows no Dagster and no database, and reads no environment. What other packages use is imported from here.
"""

from cliniko_pipeline.cliniko.client import ClinikoClient
from cliniko_pipeline.cliniko.crawling.crawl import Checkpoint, Page
from cliniko_pipeline.cliniko.events import Event, PageRead, Retrying, Statistics, Waiting
from cliniko_pipeline.cliniko.exchange.sender import Access, RequestOptions
from cliniko_pipeline.cliniko.exchange.throttle import BudgetRegistry, RequestBudget, digest_of
from cliniko_pipeline.cliniko.records import (
    APPOINTMENT_TYPES,
    ATTENDEES,
    GROUP_APPOINTMENTS,
    INDIVIDUAL_APPOINTMENTS,
    PATIENTS,
    PRACTITIONERS,
    AppointmentType,
    Attendee,
    GroupAppointment,
    IndividualAppointment,
    Patient,
    Practitioner,
    Record,
    RecordT,
    RejectedRecord,
    Resource,
)
from cliniko_pipeline.cliniko.shards import api_url_for, resolve_api_url, shard_of

__all__ = [
    "APPOINTMENT_TYPES",
    "ATTENDEES",
    "GROUP_APPOINTMENTS",
    "INDIVIDUAL_APPOINTMENTS",
    "PATIENTS",
    "PRACTITIONERS",
    "Access",
    "AppointmentType",
    "Attendee",
    "BudgetRegistry",
    "Checkpoint",
    "ClinikoClient",
    "Event",
    "GroupAppointment",
    "IndividualAppointment",
    "Page",
    "PageRead",
    "Patient",
    "Practitioner",
    "Record",
    "RecordT",
    "RejectedRecord",
    "RequestBudget",
    "RequestOptions",
    "Resource",
    "Retrying",
    "Statistics",
    "Waiting",
    "api_url_for",
    "digest_of",
    "resolve_api_url",
    "shard_of",
]
