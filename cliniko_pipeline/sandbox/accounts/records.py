"""Records as the API shows them, by resource, with unbound links (see `wire`).

The names and types of the fields are those of the published API. `demo` and `generated` choose the values. All times
are strings in the API's format, made by `instant`.
"""

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from cliniko_pipeline.sandbox.accounts.people import Person, international
from cliniko_pipeline.sandbox.wire import LINK_PREFIX, link

Record = dict[str, Any]


def instant(moment: datetime) -> str:
    """Format an aware UTC datetime as the API does: `2014-08-30T18:00:00Z`."""
    return moment.isoformat()[:19] + "Z"


@dataclass(frozen=True, slots=True)
class Site:
    """The ids of the business, the practitioner and the appointment type of an appointment."""

    business_id: str
    practitioner_id: str
    appointment_type_id: str


@dataclass(frozen=True, slots=True)
class Booking:
    """The id of an appointment, its times, and the times of its creation and last change."""

    id: str
    starts_at: str
    ends_at: str
    created_at: str
    updated_at: str


def business(record_id: str, name: str, country: str, created_at: str) -> Record:
    """Build a business; `country` is "au" or "uk"."""
    zone = "Melbourne" if country == "au" else "London"
    return {
        "id": record_id,
        "business_name": name,
        "display_name": name,
        "label": name,
        "address_1": "1 Example Street",
        "address_2": None,
        "city": "Exampleton",
        "state": None,
        "post_code": "0000",
        "country": "Australia" if country == "au" else "United Kingdom",
        "country_code": "AU" if country == "au" else "GB",
        "time_zone": zone,
        "time_zone_identifier": "Australia/Melbourne" if country == "au" else "Europe/London",
        "additional_information": None,
        "appointment_type_ids": [],
        "show_in_online_bookings": True,
        "website_address": "https://clinic.example.org",
        "archived_at": None,
        "deleted_at": None,
        "created_at": created_at,
        "updated_at": created_at,
        "appointments": link(f"businesses/{record_id}/appointments"),
        "practitioners": link(f"businesses/{record_id}/practitioners"),
        "links": _self(f"businesses/{record_id}"),
    }


def practitioner(record_id: str, person: Person, created_at: str) -> Record:
    """Build a practitioner."""
    name = f"{person.first_name} {person.last_name}"
    return {
        "id": record_id,
        "title": None,
        "first_name": person.first_name,
        "last_name": person.last_name,
        "display_name": name,
        "label": name,
        "designation": "Physiotherapist",
        "active": True,
        "show_in_online_bookings": True,
        "created_at": created_at,
        "updated_at": created_at,
        "appointments": link(f"practitioners/{record_id}/appointments"),
        "appointment_types": link(f"practitioners/{record_id}/appointment_types"),
        "invoices": link(f"practitioners/{record_id}/invoices"),
        "user": link(f"users/{record_id}"),
        "links": _self(f"practitioners/{record_id}"),
    }


def appointment_type(record_id: str, name: str, minutes: int, places: int, created_at: str) -> Record:
    """Build an appointment type. With `places` above 1, it is a class."""
    return {
        "id": record_id,
        "name": name,
        "category": "Group" if places > 1 else "Individual",
        "color": "#3366aa",
        "duration_in_minutes": minutes,
        "max_attendees": places,
        "add_deposit_to_account_credit": False,
        "appointment_confirmation_template_ids": [],
        "appointment_reminder_template_ids": [],
        "deposit_price": None,
        "online_bookings_lead_time_hours": 2,
        "online_payments_enabled": False,
        "online_payments_mode": None,
        "show_in_online_bookings": True,
        "telehealth_enabled": False,
        "archived_at": None,
        "created_at": created_at,
        "updated_at": created_at,
        "practitioners": link(f"appointment_types/{record_id}/practitioners"),
        "links": _self(f"appointment_types/{record_id}"),
    }


def patient(record_id: str, person: Person, country: str, created_at: str, updated_at: str) -> Record:
    """Build a patient, neither archived, deleted nor merged."""
    numbers = {
        "phone_type": "Mobile" if person.phone.startswith(("04", "07")) else "Home",
        "number": person.phone,
        "normalized_number": international(person.phone, country),
    }
    return {
        "id": record_id,
        "title": None,
        "first_name": person.first_name,
        "last_name": person.last_name,
        "preferred_first_name": None,
        "label": f"{person.first_name} {person.last_name}",
        "email": person.email,
        "date_of_birth": f"{person.birth_year}-{len(person.first_name):02d}-{len(person.last_name):02d}",
        "sex": None,
        "gender": None,
        "gender_identity": None,
        "pronouns": None,
        "patient_phone_numbers": [numbers],
        "address_1": f"{1 + len(person.last_name)} Example Street",
        "address_2": None,
        "address_3": None,
        "city": "Exampleton",
        "state": None,
        "post_code": "0000",
        "country": "Australia" if country == "au" else "United Kingdom",
        "time_zone": "Australia/Melbourne" if country == "au" else "Europe/London",
        "reminder_type": "SMS",
        "accepted_email_marketing": None,
        "accepted_privacy_policy": True,
        "accepted_sms_marketing": None,
        "appointment_notes": None,
        "custom_fields": {"sections": []},
        "dva_card_number": None,
        "emergency_contact": None,
        "invoice_default_to": None,
        "invoice_email": None,
        "invoice_extra_information": None,
        "medicare": None,
        "medicare_reference_number": None,
        "notes": None,
        "occupation": None,
        "old_reference_id": None,
        "receives_confirmation_emails": True,
        "referral_source": None,
        "archived_at": None,
        "deleted_at": None,
        "merged_at": None,
        "created_at": created_at,
        "updated_at": updated_at,
        "appointments": link(f"patients/{record_id}/appointments"),
        "attendees": link(f"patients/{record_id}/attendees"),
        "invoices": link(f"patients/{record_id}/invoices"),
        "medical_alerts": link(f"patients/{record_id}/medical_alerts"),
        "patient_attachments": link(f"patients/{record_id}/patient_attachments"),
        "links": _self(f"patients/{record_id}"),
    }


def individual_appointment(booking: Booking, site: Site, patient_id: str, patient_name: str) -> Record:
    """Build an appointment of one patient that is neither cancelled, archived nor deleted."""
    path = f"individual_appointments/{booking.id}"
    return {
        "id": booking.id,
        "starts_at": booking.starts_at,
        "ends_at": booking.ends_at,
        "patient_name": patient_name,
        "patient_arrived": None,
        "did_not_arrive": False,
        "cancelled_at": None,
        "cancellation_note": None,
        "cancellation_reason": None,
        "cancellation_reason_description": None,
        "archived_at": None,
        "deleted_at": None,
        "booking_ip_address": None,
        "email_reminder_sent": False,
        "sms_reminder_sent": False,
        "has_patient_appointment_notes": False,
        "invoice_status": None,
        "notes": None,
        "online_booking_policy_accepted": None,
        "repeat_rule": None,
        "telehealth_url": None,
        "treatment_note_status": None,
        "created_at": booking.created_at,
        "updated_at": booking.updated_at,
        "appointment_type": link(f"appointment_types/{site.appointment_type_id}"),
        "attendees": link(f"{path}/attendees"),
        "business": link(f"businesses/{site.business_id}"),
        "conflicts": link(f"{path}/conflicts"),
        "patient": link(f"patients/{patient_id}"),
        "practitioner": link(f"practitioners/{site.practitioner_id}"),
        "repeats": None,
        "links": _self(path),
    }


def group_appointment(booking: Booking, site: Site, patient_ids: list[str], places: int) -> Record:
    """Build a class. `patient_ids` are the patients with a place, and `places` is the limit."""
    path = f"group_appointments/{booking.id}"
    return {
        "id": booking.id,
        "starts_at": booking.starts_at,
        "ends_at": booking.ends_at,
        "max_attendees": places,
        "patient_ids": patient_ids,
        "archived_at": None,
        "deleted_at": None,
        "notes": None,
        "repeat_rule": None,
        "telehealth_url": None,
        "created_at": booking.created_at,
        "updated_at": booking.updated_at,
        "appointment_type": link(f"appointment_types/{site.appointment_type_id}"),
        "attendees": link(f"{path}/attendees"),
        "business": link(f"businesses/{site.business_id}"),
        "conflicts": link(f"{path}/conflicts"),
        "practitioner": link(f"practitioners/{site.practitioner_id}"),
        "repeats": None,
        "links": _self(path),
    }


def attendee(record_id: str, booking_id: str, patient_id: str, created_at: str, updated_at: str) -> Record:
    """Build one patient's place in an individual or group appointment."""
    path = f"attendees/{record_id}"
    return {
        "id": record_id,
        "arrived": None,
        "cancelled_at": None,
        "cancellation_note": None,
        "cancellation_reason": None,
        "cancellation_reason_description": None,
        "cancellation_url": None,
        "archived_at": None,
        "deleted_at": None,
        "booking_ip_address": None,
        "email_reminder_sent": False,
        "sms_reminder_sent": False,
        "invoice_status": None,
        "notes": None,
        "online_booking_policy_accepted": None,
        "telehealth_url": None,
        "treatment_note_status": None,
        "created_at": created_at,
        "updated_at": updated_at,
        "booking": link(f"bookings/{booking_id}"),
        "invoices": link(f"{path}/invoices"),
        "patient": link(f"patients/{patient_id}"),
        "patient_forms": link(f"{path}/patient_forms"),
        "links": _self(path),
    }


def unavailable_block(booking: Booking, site: Site) -> Record:
    """Build a time when a practitioner takes no bookings."""
    path = f"unavailable_blocks/{booking.id}"
    return {
        "id": booking.id,
        "starts_at": booking.starts_at,
        "ends_at": booking.ends_at,
        "notes": "Lunch",
        "archived_at": None,
        "deleted_at": None,
        "repeat_rule": None,
        "created_at": booking.created_at,
        "updated_at": booking.updated_at,
        "business": link(f"businesses/{site.business_id}"),
        "conflicts": link(f"{path}/conflicts"),
        "practitioner": link(f"practitioners/{site.practitioner_id}"),
        "repeats": None,
        "links": _self(path),
    }


def _self(path: str) -> dict[str, str]:
    return {"self": f"{LINK_PREFIX}/{path}"}
