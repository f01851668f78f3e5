"""Crawls that read one page at a time and commit each page, so that tests can interrupt them after any page."""

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from typing import Any

import pytest

from cliniko_pipeline.cliniko import client
from cliniko_pipeline.cliniko.crawling.crawl import Page, crawl_pages
from cliniko_pipeline.cliniko.crawling.listing import Listing
from cliniko_pipeline.orchestration.assets.extraction import COMMIT_INTERVAL_SECONDS
from cliniko_pipeline.runtime import Runtime


def crawl_page_by_page(*arguments: Any, **options: Any) -> Iterator[Page[Any]]:
    """Crawl with one page in flight. This replaces the client's `crawl_pages`."""
    return crawl_pages(*arguments, **options | {"max_in_flight": 1})


def commit_each_page(runtime: Runtime) -> None:
    """Make the runtime's clock advance by the commit interval whenever a crawl reads the clock."""
    runtime.elapsed = count(step=COMMIT_INTERVAL_SECONDS).__next__


@contextmanager
def small_pages(size: int, *, ahead: bool = False) -> Iterator[None]:
    """Set the page size. Without `ahead`, also limit crawls to one page in flight."""
    with pytest.MonkeyPatch.context() as patched:
        if not ahead:
            patched.setattr(client, "crawl_pages", crawl_page_by_page)
        patched.setattr(Listing, "page_size", size)
        yield
