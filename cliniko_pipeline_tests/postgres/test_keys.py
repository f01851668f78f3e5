"""Tests of the SQL functions `casefold`, `name_key`, `email_key` and `instant` against Python's functions."""

import sys
import unicodedata
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime

import pytest
import sqlalchemy as sa
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy.engine import URL

from cliniko_pipeline.postgres.engine import Database, sql
from cliniko_pipeline.postgres.schema import casefold
from cliniko_pipeline.postgres.schema import upgrade as schema
from cliniko_pipeline_tests.support.databases import administer, created_database
from cliniko_pipeline_tests.support.properties import examples

# All characters except surrogates and NUL, which PostgreSQL's texts cannot contain.
CHARACTERS = [chr(code) for code in range(1, sys.maxunicode + 1) if not 0xD800 <= code <= 0xDFFF]
ASSIGNED = [character for character in CHARACTERS if unicodedata.category(character) != "Cn"]
# All characters that a function changes, and some similar characters that it must not change.
CHANGED = [
    character
    for number, character in enumerate(ASSIGNED)
    if number % 50 == 0
    or character.casefold() != character
    or unicodedata.normalize("NFKC", character) != character
    or character.isspace()
]
FILE_VERSION = "14.0.0"
# Letters that influence each other in these functions.
AWKWARD = [
    *"iIkKsSaA1 \t\n\x1c\x85\xa0\u2003\u3000\u200b",
    *"\u0131\u0130\u017f\u212a\u212b\u2126\xe5\xc5",  # dotless i, dotted I, long s, signs that are letters
    *"\u03a3\u03c3\u03c2\u1fb3\u1fbc\u0390",  # sigmas, iota subscripts, and a letter that folds to three letters
    *"\xdf\u1e9e\ufb01\ufb06\u0149",  # sharp s, ligatures
    *"\u030a\u0323\u0307\u0345",  # marks that are ordered and composed
    *"\u13a0\u13f0\uab70",  # Cherokee, which folds upwards
    *"\uff21\u2460\u3300\ufdfa",  # wide, circled and squared characters, and a letter that stands for a sentence
    *"\uac00\u1100\u1161",  # composed and decomposed Hangul
]


def name_key(text: str) -> str | None:
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split()) or None


def email_key(text: str) -> str | None:
    return text.strip().casefold() or None


FUNCTIONS: dict[str, Callable[[str], str | None]] = {
    "casefold": str.casefold,
    "name_key": name_key,
    "email_key": email_key,
}
LOCALES = {
    "C": "lc_collate 'C' lc_ctype 'C'",
    "libc": "lc_collate 'C.UTF-8' lc_ctype 'C.UTF-8'",
    "icu tr": "locale_provider icu icu_locale 'tr-TR' lc_collate 'C.UTF-8' lc_ctype 'C.UTF-8'",
}


@pytest.fixture(scope="module", params=["C", pytest.param("libc", marks=pytest.mark.slow), "icu tr"])
def database(request: pytest.FixtureRequest) -> Iterator[Database]:
    """Yield databases that sort and classify letters differently. Those with ICU are on Debian's server."""
    locale = request.param
    server = request.getfixturevalue("debian_server_url" if locale.startswith("icu") else "server_url")
    with _migrated(server, LOCALES[locale]) as database:
        yield database


def _version(url: URL) -> int:
    """Return the server's major version. Version 14 has an older Unicode version than the file."""
    database = Database(url)
    try:
        with database.operator() as connection:
            return int(connection.exec_driver_sql("show server_version_num").scalar_one()) // 10_000
    finally:
        database.close()


@contextmanager
def _migrated(server: URL, locale: str) -> Iterator[Database]:
    if "icu" in locale and _version(server) < 15:
        pytest.skip("before PostgreSQL 15 ICU is no locale of a database")
    with created_database(server, "template0", f"encoding 'UTF8' {locale}") as url:
        database = Database(url)
        schema.migrate(database, create_application_tables=True)
        yield database
        database.close()


def differences(database: Database, texts: list[str]) -> list[tuple[str, str, str | None]]:
    """Return the function, the text and PostgreSQL's result wherever the result differs from Python's."""
    with database.organization("a") as connection:
        rows = connection.execute(
            sa.text(
                f"select {', '.join(f'cliniko.{function}(value)' for function in FUNCTIONS)}"
                " from unnest(cast(:texts as text[])) with ordinality as t (value, n) order by n"
            ),
            {"texts": texts},
        ).all()
    return [
        (name, text, result)
        for text, row in zip(texts, rows, strict=True)
        for (name, function), result in zip(FUNCTIONS.items(), row, strict=True)
        if result != function(text)
    ]


@pytest.mark.skipif(
    unicodedata.unidata_version != FILE_VERSION,
    reason=f"the file is generated with Unicode {FILE_VERSION}: run this test with Python 3.11",
)
def test_casefold_file_is_what_the_generator_writes() -> None:
    assert sql("functions/casefold") == casefold.function()
    assert f"(Unicode {FILE_VERSION})" in casefold.function()


def test_keys_of_every_character_equal_pythons(database: Database) -> None:
    # The character is also tested between others, because it may be folded only at the edge or only in non-ASCII texts.
    texts = ASSIGNED + [f"B{character} \u00c9{character}x" for character in CHANGED]
    found = differences(database, texts)
    if unicodedata.unidata_version != FILE_VERSION or _version(database.url) < 15:
        # Unicode versions differ in new characters, which the older one does not change.
        found = [(name, text, result) for name, text, result in found if result is None or text[-1] not in result]
    assert found == []


TEXTS = st.text(st.sampled_from(AWKWARD) | st.characters(exclude_characters="\x00", exclude_categories=["Cs", "Cn"]))


@settings(max_examples=examples(10, 50))
@given(st.lists(TEXTS, min_size=30, max_size=60))
def test_keys_of_any_text_equal_pythons(database: Database, texts: list[str]) -> None:
    assert differences(database, texts) == []


def test_keys_of_null_and_of_a_long_text_equal_pythons(database: Database) -> None:
    assert differences(database, ["İSTANBUL\u2003Straße " * 20_000]) == []
    with database.organization("a") as connection:
        keys = "cliniko.casefold(null), cliniko.name_key(null), cliniko.email_key(null)"
        assert connection.exec_driver_sql(f"select {keys}").one() == (None, None, None)


def test_keys_ignore_the_collation_of_a_column(debian_server_url: URL) -> None:
    columns = ("organization_id", "cliniko_patient_id", "name", "email")
    with _migrated(debian_server_url, LOCALES["icu tr"]) as database:
        administer(
            database.url,
            "create collation public.ignoring_case (provider = icu, locale = 'und-u-ks-level2', deterministic = false)",
            *(
                f"alter table public.contacts alter {column} type text collate public.ignoring_case"
                for column in columns
            ),
            f"insert into public.contacts ({', '.join(columns)}) values ('a', '7', 'JOSÉ Straße', 'Ä@X')",
        )
        with database.organization("a") as connection:
            connection.exec_driver_sql(
                f"select patient_id, status from ({sql('transforms/contact_mapping')}) as mapping"
            )
            row = connection.exec_driver_sql(
                "select name, cliniko.name_key(name), cliniko.email_key(email) from cliniko.organization_contacts()"
            ).one()
    assert tuple(row) == ("JOSÉ Straße", "josé strasse", "ä@x")


INSTANTS = st.datetimes(
    min_value=datetime(1, 1, 1),  # noqa: DTZ001
    max_value=datetime(9999, 12, 31, 23, 59, 59, 999_999),  # noqa: DTZ001
    timezones=st.just(UTC),
)
WHOLE_SECOND = datetime(2020, 10, 20, 10, 10, 0, tzinfo=UTC)


@settings(max_examples=examples(10, 50))
@given(st.lists(INSTANTS, min_size=10, max_size=40))
def test_instant_is_written_as_cliniko_does(module_database: Database, instants: list[datetime]) -> None:
    instants += [each.replace(microsecond=fraction) for each in instants[:5] for fraction in (0, 100, 120_000)]
    with module_database.organization("a") as connection:
        connection.execute(sa.text("set local timezone = 'Australia/Sydney'"))
        found = connection.execute(
            sa.text(
                "select cliniko.instant(at) from unnest(cast(:values as timestamptz[])) with ordinality as t (at, n)"
                " order by n"
            ),
            {"values": [*instants, WHOLE_SECOND]},
        ).scalars()
        assert list(found) == [*map(written, instants), "2020-10-20T10:10:00Z"]


def written(instant: datetime) -> str:
    text = f"{instant.year:04}-{instant:%m-%dT%H:%M:%S}"
    return text + (f".{instant.microsecond:06}".rstrip("0") if instant.microsecond else "") + "Z"
