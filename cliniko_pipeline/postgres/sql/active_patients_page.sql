-- The organization is named besides the policy that keeps to it: an index begins with it.
select
    patient.contact_id,
    patient.recent_appointment_count,
    patient.upcoming_appointment_count,
    patient.total_appointment_count,
    patient.last_appointment_date at time zone 'UTC' as last_appointment_date,
    coalesce(patient.recent_appointments, '[]') as recent_appointments,
    coalesce(patient.upcoming_appointments, '[]') as upcoming_appointments,
    patient.search_date_from at time zone 'UTC' as search_date_from,
    patient.search_date_to at time zone 'UTC' as search_date_to
from public.active_patients as patient
where patient.organization_id = current_setting('app.organization_id'){conditions}
order by {order}
limit :limit
