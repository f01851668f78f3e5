-- Creates the application's tables in the embedded database, which has no application.
create table if not exists public.organizations (
    id text primary key,
    name text not null
);

create table if not exists public.api_credentials (
    id uuid primary key default gen_random_uuid(),
    organization_id text not null,
    service_name text not null,
    credentials_encrypted jsonb not null,
    is_active boolean not null default true,
    last_validated_at timestamptz,
    created_by text,
    created_at timestamptz not null default now(),
    updated_at timestamptz,
    unique (organization_id, service_name)
);

create table if not exists public.contacts (
    id uuid primary key default gen_random_uuid(),
    organization_id text not null,
    cliniko_patient_id text,
    name text,
    first_name text,
    last_name text,
    email text,
    phone text,
    created_at timestamptz,
    updated_at timestamptz
);

create index if not exists contacts_organization_id_idx on public.contacts (organization_id);
