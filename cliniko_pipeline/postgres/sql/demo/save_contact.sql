-- For the demo's own contacts, in a database that no application shares.
insert into public.contacts (
    id, organization_id, cliniko_patient_id, name, first_name, last_name, email, phone, created_at
)
values (
    :id, :organization_id, :cliniko_patient_id, :name, :first_name, :last_name, :email, :phone, now()
)
on conflict (id) do nothing
