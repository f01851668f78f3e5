insert into cliniko.check_results as result (organization_id, asset, name, holds, remark, run_id)
values (:organization_id, :asset, :name, :holds, :remark, :run_id)
on conflict (organization_id, asset, name) do update
set
    holds = excluded.holds,
    remark = excluded.remark,
    run_id = excluded.run_id,
    checked_at = now()
