-- Returns the stored records of a resource. The planner inlines this function, and reads only the resource's table.
create or replace function cliniko.stored_records(resource text)
returns table (id text, created_at timestamptz, vanished_at timestamptz)
language sql stable
as $function$
    select id, created_at, vanished_at from cliniko.patients where resource = 'patients'
    union all
    select id, created_at, vanished_at from cliniko.attendees where resource = 'attendees'
    union all
    select id, created_at, vanished_at
    from cliniko.appointments
    where kind = 'individual' and resource = 'individual_appointments'
    union all
    select id, created_at, vanished_at
    from cliniko.appointments
    where kind = 'group' and resource = 'group_appointments'
$function$;
