-- The state of the tables in :names, and the fingerprint of the contacts. The tables' state is null if a table has no
-- version or lacks an enabled trigger. :contacts selects the present fingerprint or that of the last mapping.
--
-- A truncate, a restore and disabled triggers leave the version as it is. They change the table's filenode or the
-- row versions of the triggers, so these are part of the state, too.
select
    (
        select case
            when count(state.version) = count(*) and bool_and(coalesce(watched.triggers, 0) = 3)
                then jsonb_object_agg(
                    named.name, array[state.version::text, pg_relation_filenode(named.name)::text, watched.versions]
                )
        end
        from unnest(cast(:names as text[])) as named (name)
        left join cliniko.table_states as state on state.name = named.name
        left join lateral (
            select
                count(*) filter (where tgenabled in ('O', 'A')) as triggers,
                md5(string_agg(concat_ws(' ', oid, xmin), ',' order by oid)) as versions
            from pg_trigger
            where tgrelid = named.name::regclass and tgname in ('note_insert', 'note_update', 'note_delete')
        ) as watched on true
    ) as tables,
    case cast(:contacts as text)
        when 'as they are' then cliniko.contacts_fingerprint()
        when 'as mapped' then (
            select state.computed_from ->> 'contacts'
            from cliniko.table_states as state
            where state.name = 'cliniko.contact_mapping' and state.computed_from ->> 'itself' = state.version::text
        )
    end as contacts,
    current_setting('server_version') as server,
    obj_description('cliniko'::regnamespace, 'pg_namespace') as functions
