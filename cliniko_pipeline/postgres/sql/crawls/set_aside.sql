insert into cliniko.rejected_records (organization_id, resource, id, reason)
values (current_setting('app.organization_id'), :resource, :id, :reason)
