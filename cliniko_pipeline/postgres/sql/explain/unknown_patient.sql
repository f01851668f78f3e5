-- Why a patient's record was rejected, if it was, and how many stored records refer to the patient.
select
    (
        select reason from cliniko.rejected_records where resource = 'patients' and id = :patient_id limit 1
    ) as rejected_because,
    (select count(*) from cliniko.appointments where patient_id = :patient_id)
        + (select count(*) from cliniko.attendees where patient_id = :patient_id)
        + (select count(*) from cliniko.patients where merged_into_id = :patient_id) as mentions
