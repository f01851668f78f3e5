-- Returns the condition for the context's organization, which depends on the type of the table's organization_id. A
-- text column is compared without a cast, so that an index is used. If the column's collation may treat different texts
-- as equal, the texts are also compared in the collation "C". Other types are compared as texts in this collation only.
--
-- The sub-select makes PostgreSQL read the context once per statement instead of once per row.
select
    case
        when is_text and is_exact then format('organization_id = %1$s', context)
        when is_text
            then format('organization_id = %1$s and organization_id::text collate "C" = %1$s', context)
        else format('organization_id::text collate "C" = %1$s', context)
    end
from (
    select
        pg_attribute.atttypid in ('text'::regtype, 'varchar'::regtype) as is_text,
        coalesce(pg_collation.collisdeterministic, true) as is_exact,
        $$(select nullif(current_setting('app.organization_id', true), ''))$$ as context
    from pg_attribute
    left join pg_collation on pg_collation.oid = pg_attribute.attcollation
    where pg_attribute.attrelid = to_regclass(:table) and pg_attribute.attname = 'organization_id'
) as described
