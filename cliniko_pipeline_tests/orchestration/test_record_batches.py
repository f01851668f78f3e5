"""Batches written while the next are read: none may be lost with a connection."""

import threading
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest
import sqlalchemy as sa

from cliniko_pipeline.errors import DatabaseUnavailableError
from cliniko_pipeline.orchestration import record_batches
from cliniko_pipeline.orchestration.record_batches import WritingBehind
from cliniko_pipeline.orchestration.values import CrawlProgress, RecordBatch
from cliniko_pipeline.postgres.engine import Database
from cliniko_pipeline.postgres.merge import Written
from cliniko_pipeline.postgres.tables import PATIENTS

NOW = datetime(2024, 1, 1, tzinfo=UTC)
CRAWL = CrawlProgress(is_full=True, reconciles=False, horizon=NOW)


def batch(*ids: str, is_first: bool = False, is_last: bool = False, name: str = "A") -> RecordBatch:
    rows = [(each, name, "B", None, None, None, None, None, NOW, NOW) for each in ids]
    return RecordBatch("patients", PATIENTS, rows, is_first=is_first, is_last=is_last, crawl=CRAWL)


@pytest.mark.parametrize("is_last", [False, True])
def test_crawl_fails_when_the_organization_lock_is_lost(database: Database, is_last: bool) -> None:
    # The server may have crashed and restarted: a batch committed without waiting for the disk may be lost.
    def read_and_write() -> None:
        written: list[RecordBatch] = []
        with (
            database.turn("o") as require_turn,
            WritingBehind(database, "o", lambda batch, _: written.append(batch), require_turn) as writing,
        ):
            writing.write(batch(is_first=True))
            end_all_others(database)
            writing.write(batch("2", is_last=is_last))

    with pytest.raises(DatabaseUnavailableError, match="was lost"):
        read_and_write()
    with database.organization("o") as connection:
        assert connection.execute(sa.text("select count(*) from cliniko.patients")).scalar_one() == 0
        assert connection.execute(sa.text("select completed_at from cliniko.crawls")).scalar_one() is None


def test_first_crawl_merges_a_page_that_is_read_again(
    database: Database,
) -> None:
    counted: list[Written] = []
    with (
        database.turn("o") as require_turn,
        WritingBehind(database, "o", lambda _, written: counted.append(written), require_turn) as writing,
    ):
        writing.write(batch(is_first=True))
        writing.write(batch("1", "2"))
        writing.write(batch("2", "3", name="New"))
        writing.write(batch("1", "4"))
        writing.write(batch(is_last=True))
    assert sum(counted, Written()) == Written(inserted=4, updated=1)
    with database.organization("o") as connection:
        rows = connection.execute(sa.text("select id, first_name from cliniko.patients order by id")).all()
        assert [tuple(row) for row in rows] == [("1", "A"), ("2", "New"), ("3", "New"), ("4", "A")]
        assert connection.execute(sa.text("select records from cliniko.crawls")).scalar_one() == 6


def test_first_crawl_alone_inserts_without_merging(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[bool] = []
    written_as_new = record_batches.write_batch

    def spied(*arguments: Any, are_new: bool = False) -> Written:
        tried.append(are_new)
        return written_as_new(*arguments, are_new=are_new)

    monkeypatch.setattr(record_batches, "write_batch", spied)
    for crawl in (CRAWL, replace(CRAWL, reconciles=True), replace(CRAWL, is_full=False)):
        with (
            database.turn("o") as require_turn,
            WritingBehind(database, "o", lambda *_: None, require_turn) as writing,
        ):
            writing.write(replace(batch(is_first=True), crawl=crawl))
            writing.write(replace(batch("1"), crawl=crawl))
    assert tried == [True, True, False, False, False, False]


def end_all_others(database: Database) -> None:
    with database.operator() as connection:
        connection.execute(
            sa.text(
                "select pg_terminate_backend(pid) from pg_stat_activity"
                " where datname = current_database() and pid <> pg_backend_pid()"
            )
        )


def test_batch_is_written_within_the_lock_when_interrupted(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    written = threading.Event()
    writing = WritingBehind(database, "o", lambda *_: None, lambda: None)
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
