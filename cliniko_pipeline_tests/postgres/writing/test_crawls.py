"""Tests of the records that a full crawl did not see."""

from datetime import UTC, datetime, timedelta

import sqlalchemy as sa

from cliniko_pipeline.postgres.engine import Database
from cliniko_pipeline.postgres.tables import PATIENTS
from cliniko_pipeline.postgres.writing import crawls
from cliniko_pipeline.postgres.writing.merge import upsert

HORIZON = datetime(2024, 1, 1, tzinfo=UTC)


def test_unseen_records_from_before_the_crawl_are_marked_deleted(database: Database) -> None:
    created = {"seen": HORIZON - timedelta(days=1), "gone": HORIZON - timedelta(days=1), "newer": HORIZON}
    rows = [(name, "A", None, None, None, None, None, None, at, at) for name, at in created.items()]
    with database.organization("a") as connection:
        upsert(connection, PATIENTS, rows)
        connection.exec_driver_sql(
            "insert into cliniko.crawled_ids (organization_id, resource, id) values ('a', 'patients', 'seen')"
        )
        assert crawls.mark_missing_deleted(connection, "patients", HORIZON) == 1
        marked = connection.execute(sa.text("select id from cliniko.patients where deleted_at is not null"))
        assert marked.scalars().all() == ["gone"]
