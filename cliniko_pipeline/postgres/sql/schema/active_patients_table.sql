-- Creates public.active_patients and its indexes. The application may have created the table and filled it.
create table if not exists public.active_patients (
    id bigserial not null,
    contact_id uuid not null,
    recent_appointment_count integer not null,
    upcoming_appointment_count integer not null,
    total_appointment_count integer not null,
    last_appointment_date timestamp,
    recent_appointments jsonb,
    upcoming_appointments jsonb,
    search_date_from timestamp,
    search_date_to timestamp,
    organization_id text,
    created_at timestamp,
    updated_at timestamp
);

do $$
begin
    if to_regclass('public.active_patients_organization_id_contact_id_key') is null then
        -- The owner must see all rows here. `isolate` forces the policies again in the same transaction.
        alter table public.active_patients no force row level security;
        -- Of a contact's rows the first one is kept, because the application may refer to its id.
        delete from public.active_patients as row
        using public.active_patients as earlier
        where earlier.organization_id = row.organization_id
            and earlier.contact_id = row.contact_id
            and earlier.id < row.id;
        create unique index active_patients_organization_id_contact_id_key
            on public.active_patients (organization_id, contact_id);
    end if;
end
$$;

create index if not exists active_patients_contact_idx
    on public.active_patients (organization_id, contact_id, last_appointment_date, upcoming_appointment_count);
create index if not exists active_patients_last_appointment_idx
    on public.active_patients (organization_id, last_appointment_date, contact_id, upcoming_appointment_count);
create index if not exists active_patients_recent_idx on public.active_patients
    (organization_id, recent_appointment_count, contact_id, last_appointment_date, upcoming_appointment_count);
create index if not exists active_patients_upcoming_idx on public.active_patients
    (organization_id, upcoming_appointment_count, contact_id, last_appointment_date);
create index if not exists active_patients_total_idx on public.active_patients
    (organization_id, total_appointment_count, contact_id, last_appointment_date, upcoming_appointment_count);
