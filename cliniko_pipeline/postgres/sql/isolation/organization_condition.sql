-- What tells the organization's rows in a table, by the type of its organization_id. An index is used where the column
-- is a text. Where a collation takes two texts for one, or the type does, they are compared letter by letter.
--
-- The context is read once a statement (the sub-select), not once a row.
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
