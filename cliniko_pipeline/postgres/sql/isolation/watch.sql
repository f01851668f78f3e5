-- The triggers record every change of the table in cliniko.table_states, in the same transaction.
drop trigger if exists note_insert on {table};
drop trigger if exists note_update on {table};
drop trigger if exists note_delete on {table};
create trigger note_insert after insert on {table}
referencing new table as changed for each statement execute function cliniko.note_change();
create trigger note_update after update on {table}
referencing new table as changed old table as former for each statement execute function cliniko.note_update();
create trigger note_delete after delete on {table}
referencing old table as changed for each statement execute function cliniko.note_change();
