"""The demo's `public.contacts`, with every way in which contacts match patients, or do not."""

import random
import uuid
from typing import Any

from cliniko_pipeline.sandbox.accounts.clinic import ClinicPatient
from cliniko_pipeline.sandbox.accounts.people import invent_person

Contact = dict[str, Any]


class ContactBook:
    """The contacts of one organization."""

    def __init__(self, organization_id: str, dice: random.Random) -> None:
        self.rows: list[Contact] = []
        self._organization_id = organization_id
        self._dice = dice

    def add(
        self,
        patient: ClinicPatient,
        *,
        patient_id: str | None = None,
        email: str | None = None,
        name: str | None = None,
    ) -> Contact:
        """Add a contact for a patient, with an e-mail address or a patient id only if given."""
        person = patient.person
        contact: Contact = {
            "id": str(uuid.UUID(int=self._dice.getrandbits(128), version=4)),
            "organization_id": self._organization_id,
            "cliniko_patient_id": patient_id,
            "name": f"{person.first_name} {person.last_name}" if name is None else name,
            "first_name": person.first_name,
            "last_name": person.last_name,
            "email": email,
            "phone": person.phone,
        }
        self.rows.append(contact)
        return contact

    def add_as_usual(self, patient: ClinicPatient) -> None:
        """Add a contact for a patient in one of the usual ways, or no contact at all."""
        draw, email = self._dice.random(), patient.person.email
        if draw < 0.08:
            return
        if draw < 0.40:
            self.add(patient, patient_id=patient.id, email=email)
        elif email is not None and draw < 0.60:
            self.add(patient, email=email)
        elif email is not None and draw < 0.70:
            self.add(patient, email=f" {email.upper()} ", name="")
        elif draw < 0.75:
            self.add(patient, name=f"  {patient.name.upper().replace(' ', '   ')} ")
        else:
            self.add(patient)

    def add_strangers(self, number: int, country: str) -> None:
        """Add contacts for people who never were patients."""
        for count in range(number):
            person = invent_person(self._dice, 90_000 + count, country)
            stranger = ClinicPatient({"first_name": "", "last_name": ""}, person)
            self.add(stranger, email=person.email, name=f"{person.first_name} Stranger-{person.last_name}")
            self.rows[-1]["last_name"] = f"Stranger-{person.last_name}"
