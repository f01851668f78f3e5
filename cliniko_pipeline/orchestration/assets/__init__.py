"""The four assets: two are extracted from Cliniko, and two are computed in PostgreSQL."""

from cliniko_pipeline.orchestration.assets.active_patients import active_patients
from cliniko_pipeline.orchestration.assets.appointments import appointments
from cliniko_pipeline.orchestration.assets.contact_mapping import contact_mapping
from cliniko_pipeline.orchestration.assets.patients import patients

ASSETS = (patients, appointments, contact_mapping, active_patients)
