"""Tests of responses that are too large, and of names, links and dates that cannot be true."""

import json

import httpx
import pytest

from cliniko_pipeline import errors
from cliniko_pipeline.cliniko.crawling.listing import Listing
from cliniko_pipeline.cliniko.decoding.pages import MAX_ENTRIES, decode_page
from cliniko_pipeline.cliniko.records import PATIENTS
from cliniko_pipeline_tests.support.scripted_clients import NOW, RECORD, ScriptedClient


def page_of(entries: str, total: int = 1) -> bytes:
    return f'{{"patients":[{entries}],"total_entries":{total},"links":{{}}}}'.encode()


@pytest.mark.parametrize("entry", ["{}", json.dumps(RECORD)])
def test_page_of_too_many_entries_is_refused(entry: str) -> None:
    assert Listing.page_size == MAX_ENTRIES
    with pytest.raises(errors.UnexpectedResponseError, match="more patients than the 100 of a page"):
        decode_page(PATIENTS, page_of(",".join([entry] * (MAX_ENTRIES + 1))))


def test_full_page_of_rejected_records_is_decoded() -> None:
    decoded = decode_page(PATIENTS, page_of(",".join(["{}"] * 99 + ["null"]), total=100))
    assert (len(decoded.records), len(decoded.rejected)) == (0, 100)


@pytest.mark.parametrize("field", ["first_name", "last_name", "email"])
def test_text_of_millions_of_characters_is_rejected_with_its_reason(field: str) -> None:
    entries = [RECORD, {**RECORD, "id": "2", field: "x" * 5_000_000}, {**RECORD, "id": "3", field: "x" * 2_000}]
    decoded = decode_page(PATIENTS, page_of(",".join(map(json.dumps, entries)), total=3))
    assert [record.id for record in decoded.records] == ["1", "3"]
    (rejected,) = decoded.rejected
    assert (rejected.id, rejected.reason) == ("2", f"{field}: longer than 2,000 characters")


def test_link_of_millions_of_characters_is_rejected() -> None:
    link = {"links": {"self": f"https://{'x' * 5_000_000}/patients/1"}}
    decoded = decode_page(PATIENTS, page_of(json.dumps({**RECORD, "merged_with_patient": link})))
    assert decoded.rejected[0].reason == "merged_with_patient: longer than 2,000 characters"


@pytest.mark.parametrize(
    "date", ["Thu, 01 Jan 1970 00:00:00 GMT", "Thu, 31 Dec 2099 23:59:59 GMT", "Fri, 31 Dec 9999 23:59:59 GMT"]
)
def test_reset_is_understood_beside_a_date_that_cannot_be_right(date: str) -> None:
    limited = httpx.Response(429, headers={"X-RateLimit-Reset": str(NOW + 20), "Date": date})
    scripted = ScriptedClient(limited)
    scripted.crawl()
    assert scripted.now == 21.0
