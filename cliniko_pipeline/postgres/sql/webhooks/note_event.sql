insert into cliniko.webhook_events (organization_id, message_id, type)
values (:organization_id, :message_id, :type)
on conflict (organization_id, message_id) do nothing
