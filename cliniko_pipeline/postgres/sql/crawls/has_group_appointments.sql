-- Whether there is a group appointment, stored or rejected. The order lets an index find the first row.
select
    (select appointment.id from cliniko.appointments as appointment where kind = 'group' order by id limit 1) is not null
    or exists (select from cliniko.rejected_records where resource = 'group_appointments')
