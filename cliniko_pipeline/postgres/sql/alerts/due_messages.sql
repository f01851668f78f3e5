-- A channel gets its messages in order, so that the last received message is about the last change.
select notice.id, notice.channel, notice.kind, notice.title, notice.body
from cliniko.notices as notice
where notice.send_at <= now()
    and not exists (
        select from cliniko.notices as older
        where older.channel = notice.channel and older.id < notice.id and older.send_at > now()
    )
order by notice.id
