grant usage on schema {schema} to {role};
grant select, insert, update, delete on {table} to {role};
