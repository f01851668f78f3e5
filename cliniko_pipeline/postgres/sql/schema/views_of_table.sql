-- The views of the table, with their owners. A view reads with its owner's privileges. Left out are views whose owner
-- bypasses row-level security, or has another policy on the table besides the pipeline's policies.
select distinct pg_class.oid::regclass::text as name, quote_ident(owner.rolname) as reader
from pg_depend
inner join pg_rewrite on pg_rewrite.oid = pg_depend.objid
inner join pg_class on pg_class.oid = pg_rewrite.ev_class and pg_class.relkind in ('v', 'm')
inner join pg_roles as owner on owner.oid = pg_class.relowner
where pg_depend.classid = 'pg_rewrite'::regclass
    and pg_depend.refclassid = 'pg_class'::regclass
    and pg_depend.refobjid = to_regclass(:table)
    and not owner.rolsuper
    and not owner.rolbypassrls
    and not exists (
        select
        from pg_policy
        where polrelid = pg_depend.refobjid
            and polname not in ('organization_isolation', 'organization_boundary')
            and (polroles = array[0::oid] or owner.oid = any(polroles))
    )
order by name
