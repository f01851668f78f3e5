"""The resources of the simulated API, and the types of their filterable fields."""

from dataclasses import dataclass
from enum import Enum


class FieldKind(Enum):
    """The type of a filterable field, which decides which operators a filter may use."""

    DATE_TIME = "date-time"
    DATE = "date"
    NUMBER = "number"
    TEXT = "string"
    BOOLEAN = "boolean"
    ARRAY = "array"


@dataclass(frozen=True, slots=True)
class Resource:
    """One list of the API. `stored` is false for a list that is made of other resources."""

    name: str
    fields: dict[str, FieldKind]
    stored: bool = True

    @property
    def lifts_deleted(self) -> str:
        """The field whose filter adds deleted records to the list."""
        # In lists without deleted_at, archiving has replaced deletion.
        return "deleted_at" if "deleted_at" in self.fields else "archived_at"


_TIMES = {"created_at": FieldKind.DATE_TIME, "updated_at": FieldKind.DATE_TIME}
_ARCHIVED = {"archived_at": FieldKind.DATE_TIME}
_DELETED = {"deleted_at": FieldKind.DATE_TIME}
_CANCELLED = {"cancelled_at": FieldKind.DATE_TIME}
_ID = {"id": FieldKind.NUMBER}
_BOOKING = {
    **_ID,
    **_TIMES,
    **_ARCHIVED,
    **_DELETED,
    "appointment_type_id": FieldKind.NUMBER,
    "business_id": FieldKind.NUMBER,
    "ends_at": FieldKind.DATE_TIME,
    "practitioner_id": FieldKind.NUMBER,
    "repeated_from_id": FieldKind.NUMBER,
    "starts_at": FieldKind.DATE_TIME,
}

RESOURCES: dict[str, Resource] = {
    resource.name: resource
    for resource in (
        Resource(
            "patients",
            {
                **_ID,
                **_TIMES,
                **_ARCHIVED,
                "date_of_birth": FieldKind.DATE,
                "email": FieldKind.TEXT,
                "first_name": FieldKind.TEXT,
                "last_name": FieldKind.TEXT,
                "preferred_first_name": FieldKind.TEXT,
                "old_reference_id": FieldKind.TEXT,
            },
        ),
        Resource("individual_appointments", {**_BOOKING, **_CANCELLED, "patient_id": FieldKind.NUMBER}),
        Resource("group_appointments", {**_BOOKING, "patient_ids": FieldKind.ARRAY}),
        Resource(
            "attendees",
            {
                **_ID,
                **_TIMES,
                **_ARCHIVED,
                **_DELETED,
                **_CANCELLED,
                "appointment_id": FieldKind.NUMBER,
                "booking_id": FieldKind.NUMBER,
                "patient_case_id": FieldKind.NUMBER,
                "patient_id": FieldKind.NUMBER,
            },
        ),
        Resource(
            "bookings",
            {
                **_BOOKING,
                **_CANCELLED,
                "patient_ids": FieldKind.ARRAY,
                "did_not_arrive": FieldKind.BOOLEAN,
            },
            stored=False,
        ),
        Resource(
            "appointment_types",
            {
                **_ID,
                **_TIMES,
                **_ARCHIVED,
                "category": FieldKind.TEXT,
                "online_payments_mode": FieldKind.TEXT,
                "show_in_online_bookings": FieldKind.BOOLEAN,
                "appointment_confirmation_template_ids": FieldKind.ARRAY,
                "appointment_reminder_template_ids": FieldKind.ARRAY,
            },
        ),
        Resource(
            "practitioners",
            {
                **_ID,
                **_TIMES,
                "user_id": FieldKind.NUMBER,
                "show_in_online_bookings": FieldKind.BOOLEAN,
            },
        ),
        Resource(
            "businesses",
            {
                **_ID,
                **_TIMES,
                **_ARCHIVED,
                **_DELETED,
                "appointment_type_ids": FieldKind.ARRAY,
                "show_in_online_bookings": FieldKind.BOOLEAN,
            },
        ),
    )
}

SETTINGS = "settings"
"""The path of the account's settings, which are not a list."""

UNLISTED_RESOURCES = frozenset({"unavailable_blocks"})
"""The stored resources that appear only among the bookings."""

BOOKING_RESOURCES = frozenset({"individual_appointments", "group_appointments", "unavailable_blocks"})
"""The resources that `/bookings` lists together."""

STORED_RESOURCES = frozenset(name for name, resource in RESOURCES.items() if resource.stored) | UNLISTED_RESOURCES
"""The resources whose records an account stores."""
