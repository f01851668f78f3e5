-- Those included that could not be understood.
select
    exists (select from cliniko.appointments where kind = 'group')
    or exists (select from cliniko.rejected_records where resource = 'group_appointments')
