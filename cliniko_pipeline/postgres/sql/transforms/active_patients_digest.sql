-- A text that changes with the stored active patients, and with the names that their appointments show.
select concat_ws(
    ' ',
    (
        select concat_ws(
            ' ',
            count(*),
            sum(
                hash_record_extended(
                    row(
                        contact_id,
                        recent_appointment_count,
                        upcoming_appointment_count,
                        total_appointment_count,
                        last_appointment_date
                    ),
                    0
                )
            )
        )
        from public.active_patients
    ),
    (select concat_ws(' ', count(*), max(synced_at)) from cliniko.appointment_types),
    (select concat_ws(' ', count(*), max(synced_at)) from cliniko.practitioners)
)
