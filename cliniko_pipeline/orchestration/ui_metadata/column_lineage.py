"""The source columns of each computed column, which the Dagster UI shows as lineage."""

from collections.abc import Mapping

import dagster as dg

_PATIENTS = dg.AssetKey(["cliniko", "patients"])
_APPOINTMENTS = dg.AssetKey(["cliniko", "appointments"])
_MAPPING = dg.AssetKey("contact_mapping")
_CONTACTS = dg.AssetKey("contacts")  # a table of the application, not an asset

_Column = tuple[dg.AssetKey, str]


def _columns(asset: dg.AssetKey, *names: str) -> tuple[_Column, ...]:
    return tuple((asset, name) for name in names)


_PERSON = _columns(_PATIENTS, "id", "merged_into_id")
_MATCHED = (
    *_PERSON,
    *_columns(_PATIENTS, "email", "first_name", "last_name", "archived_at", "deleted_at"),
    *_columns(_CONTACTS, "id", "cliniko_patient_id", "email", "name"),
)
_ACTIVE = (
    *_PERSON,
    *_columns(_PATIENTS, "archived_at", "deleted_at"),
    *_columns(_APPOINTMENTS, "patient_id", "starts_at", "cancelled_at", "archived_at", "deleted_at", "did_not_arrive"),
)
_DETAILS = (*_ACTIVE, *_columns(_APPOINTMENTS, "kind", "id", "ends_at", "appointment_type_id", "practitioner_id"))

_LINEAGE: dict[dg.AssetKey, dict[str, tuple[_Column, ...]]] = {
    _MAPPING: {
        "patient_id": _PERSON,
        "contact_id": _MATCHED,
        "status": _MATCHED,
        "method": _MATCHED,
        "candidate_count": _MATCHED,
    },
    dg.AssetKey("active_patients"): {
        "contact_id": (*_columns(_MAPPING, "patient_id", "contact_id"), *_ACTIVE),
        "recent_appointment_count": _ACTIVE,
        "upcoming_appointment_count": _ACTIVE,
        "total_appointment_count": _ACTIVE,
        "last_appointment_date": _ACTIVE,
        "recent_appointments": _DETAILS,
        "upcoming_appointments": _DETAILS,
    },
}


def lineage(asset: dg.AssetKey) -> Mapping[str, dg.TableColumnLineage]:
    """Return the lineage of a computed asset, for its definition. Return nothing for other assets.

    In the metadata of materializations, the lineage would be the largest part of a run's events.
    """
    by_column = _LINEAGE.get(asset)
    if by_column is None:
        return {}
    return {
        "dagster/column_lineage": dg.TableColumnLineage(
            {
                column: [dg.TableColumnDep(asset_key=key, column_name=name) for key, name in sources]
                for column, sources in by_column.items()
            }
        )
    }
