"""Tests of batches that are written while the next are read. A lost connection must lose no batch."""

import threading
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime

import pytest
import sqlalchemy as sa

from cliniko_pipeline.errors import DatabaseUnavailableError
from cliniko_pipeline.postgres.engine import Database
from cliniko_pipeline.postgres.tables import PATIENTS
from cliniko_pipeline.postgres.writing.merge import Written
from cliniko_pipeline.postgres.writing.record_batches import BatchWriter, CrawlProgress, RecordBatch

NOW = datetime(2024, 1, 1, tzinfo=UTC)
END_ALL_OTHERS = (
    "select pg_terminate_backend(pid) from pg_stat_activity"
    " where datname = current_database() and pid <> pg_backend_pid()"
)
CRAWL = CrawlProgress(is_full=True, reconciles=False, next_cursor=NOW)


def batch(*ids: str, is_first: bool = False, is_last: bool = False, name: str = "A") -> RecordBatch:
    rows = [(one, name, "B", None, None, None, None, None, NOW, NOW) for one in ids]
    return RecordBatch("patients", PATIENTS, rows, is_first=is_first, is_last=is_last, crawl=CRAWL)


def write_batches(database: Database, batches: Iterable[RecordBatch]) -> list[Written]:
    """Return the written records of each batch."""
    counted: list[Written] = []
    with (
        database.organization_lock("o") as require_lock,
        BatchWriter(database, "o", lambda _, written: counted.append(written), require_lock) as writing,
    ):
        for written_batch in batches:
            writing.write(written_batch)
    return counted


@pytest.mark.parametrize("is_last", [False, True])
def test_crawl_fails_when_the_organization_lock_is_lost(database: Database, is_last: bool) -> None:
    """A crashed server may have lost a batch, because its commit did not wait for the disk."""

    def batches() -> Iterator[RecordBatch]:
        yield batch(is_first=True)
        with database.operator() as connection:
            connection.exec_driver_sql(END_ALL_OTHERS)
        yield batch("2", is_last=is_last)

    with pytest.raises(DatabaseUnavailableError, match="was lost"):
        write_batches(database, batches())
    with database.organization("o") as connection:
        assert connection.execute(sa.text("select count(*) from cliniko.patients")).scalar_one() == 0
        assert connection.execute(sa.text("select completed_at from cliniko.crawls")).scalar_one() is None


def test_first_crawl_merges_a_page_that_is_read_again(database: Database) -> None:
    pages = [batch("1", "2"), batch("2", "3", name="New"), batch("1", "4")]
    counted = write_batches(database, [batch(is_first=True), *pages, batch(is_last=True)])
    assert sum(counted, Written()) == Written(inserted=4, updated=1)
    with database.organization("o") as connection:
        rows = connection.execute(sa.text("select id, first_name from cliniko.patients order by id")).all()
        assert [tuple(row) for row in rows] == [("1", "A"), ("2", "New"), ("3", "New"), ("4", "A")]
        assert connection.execute(sa.text("select records from cliniko.crawls")).scalar_one() == 6


def test_batch_is_written_within_the_lock_when_interrupted(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    written = threading.Event()
    writing = BatchWriter(database, "o", lambda *_: None, lambda: None)
    handed_over = writing._thread.submit

    def submit(work):
        begun = threading.Event()

        def slow():
            begun.set()
            result = work()
            written.set()
            return result

        handed_over(slow)
        begun.wait()
        raise KeyboardInterrupt

    def read_and_write() -> None:
        with writing:
            writing.write(batch(is_first=True))
            writing.write(batch(*map(str, range(1, 3000))))

    monkeypatch.setattr(writing._thread, "submit", submit)
    with pytest.raises(KeyboardInterrupt):
        read_and_write()
    assert written.is_set()
