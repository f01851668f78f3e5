-- A channel that did not take one gets nothing newer before it: the last that is heard must be the last that happened.
select notice.id, notice.channel, notice.kind, notice.title, notice.body
from cliniko.notices as notice
where notice.send_at <= now()
    and not exists (
        select from cliniko.notices as older
        where older.channel = notice.channel and older.id < notice.id and older.send_at > now()
    )
order by notice.id
