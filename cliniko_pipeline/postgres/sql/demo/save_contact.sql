-- Saves a contact of the demo, whose database is not shared with an application.
insert into public.contacts (
    id, organization_id, cliniko_patient_id, name, first_name, last_name, email, phone, created_at
)
values (
    :id, :organization_id, :cliniko_patient_id, :name, :first_name, :last_name, :email, :phone, now()
)
on conflict (id) do nothing
