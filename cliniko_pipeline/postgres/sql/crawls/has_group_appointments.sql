-- Those included that could not be understood. In order, so that an index finds the first, or that there is none.
select
    (select appointment.id from cliniko.appointments as appointment where kind = 'group' order by id limit 1) is not null
    or exists (select from cliniko.rejected_records where resource = 'group_appointments')
