-- The organizations that were synced or scheduled before, and whether policies may hide credentials from this user.
select
    (select array_agg(organization_id order by organization_id) from cliniko.scheduling) as ids,
    quote_ident(current_user) as reader,
    row_security_active('public.api_credentials') as is_under_policies
