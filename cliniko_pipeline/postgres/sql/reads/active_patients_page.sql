-- The condition on organization_id repeats the policy's condition in the form that an index needs.
-- If the application created the table, times may have a time zone, and arrays may be json or text.
select
    patient.contact_id,
    patient.recent_appointment_count,
    patient.upcoming_appointment_count,
    patient.total_appointment_count,
    cast(patient.last_appointment_date as timestamp) at time zone 'UTC' as last_appointment_date,
    cast(coalesce(patient.recent_appointments, '[]') as jsonb) as recent_appointments,
    cast(coalesce(patient.upcoming_appointments, '[]') as jsonb) as upcoming_appointments,
    cast(patient.search_date_from as timestamp) at time zone 'UTC' as search_date_from,
    cast(patient.search_date_to as timestamp) at time zone 'UTC' as search_date_to
from public.active_patients as patient
where patient.organization_id::text = current_setting('app.organization_id'){conditions}
order by {order}
limit :limit
