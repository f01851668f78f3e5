insert into cliniko.alerts as alert (organization_id, name, kind, reason, raised_at, told_at)
values (:organization_id, :name, :kind, :reason, :raised_at, :told_at)
on conflict (organization_id, name) do update
set
    kind = excluded.kind,
    reason = excluded.reason,
    told_at = excluded.told_at
