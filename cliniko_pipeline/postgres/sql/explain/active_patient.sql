-- The row of public.active_patients of one contact as it would be computed now. Filled in are the columns wanted, and
-- active_patients.sql.
select {columns}
from ({active_patients}) as computed
where contact_id = :contact_id
