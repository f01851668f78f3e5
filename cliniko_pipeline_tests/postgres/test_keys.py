"""The functions that decide what is the same name, address and instant, against Python's own."""

import sys
import unicodedata
from collections.abc import Callable, Iterator
from datetime import UTC, datetime

import pytest
import sqlalchemy as sa
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy.engine import URL

from cliniko_pipeline.errors import DataError
from cliniko_pipeline.postgres import casefold, schema
from cliniko_pipeline.postgres.engine import Database, sql

# All but the surrogates and NUL, which no text of PostgreSQL holds.
CHARACTERS = [chr(code) for code in range(1, sys.maxunicode + 1) if not 0xD800 <= code <= 0xDFFF]
ASSIGNED = [character for character in CHARACTERS if unicodedata.category(character) != "Cn"]
# All that a function changes, and some neighbours that it must not.
_CHANGED = [
    character
    for number, character in enumerate(ASSIGNED)
    if number % 50 == 0
    or character.casefold() != character
    or unicodedata.normalize("NFKC", character) != character
    or character.isspace()
]
FILE_VERSION = "14.0.0"
# Letters that meet in these functions.
AWKWARD = [
    *"iIkKsSaA1 \t\n\x1c\x85\xa0\u2003\u3000\u200b",
    *"\u0131\u0130\u017f\u212a\u212b\u2126\xe5\xc5",  # dotless i, dotted I, long s, signs that are letters
    *"\u03a3\u03c3\u03c2\u1fb3\u1fbc\u0390",  # sigmas, iota subscripts, a letter that folds to three
    *"\xdf\u1e9e\ufb01\ufb06\u0149",  # sharp s, ligatures
    *"\u030a\u0323\u0307\u0345",  # marks, to be ordered and joined
    *"\u13a0\u13f0\uab70",  # Cherokee, which folds upwards
    *"\uff21\u2460\u3300\ufdfa",  # wide, circled, squared, a letter that stands for a sentence
    *"\uac00\u1100\u1161",  # Hangul, joined and apart
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


@pytest.fixture(
    scope="module",
    params=["C", "libc", "icu", "icu und", "icu tr"],
)
def database(request: pytest.FixtureRequest, server_url: URL) -> Iterator[Database]:
    """Databases that sort and classify letters differently, as far as the server has them."""
    options = {
        "C": "lc_collate 'C' lc_ctype 'C'",
        "libc": "lc_collate 'C.UTF-8' lc_ctype 'C.UTF-8'",
        "icu": "locale_provider icu icu_locale 'en-US' lc_collate 'C' lc_ctype 'C'",
        "icu und": "locale_provider icu icu_locale 'und' lc_collate 'C.UTF-8' lc_ctype 'C.UTF-8'",
        "icu tr": "locale_provider icu icu_locale 'tr-TR' lc_collate 'C.UTF-8' lc_ctype 'C.UTF-8'",
    }[request.param]
    name = f"test_{request.param.replace(' ', '_').lower()}_{id(request)}"
    administration = sa.create_engine(server_url.set(drivername="postgresql+psycopg"), isolation_level="AUTOCOMMIT")
    with administration.connect() as connection:
        try:
            connection.execute(sa.text(f"create database {name} template template0 encoding 'UTF8' {options}"))
        except sa.exc.DBAPIError as error:
            administration.dispose()
            pytest.skip(f"this server has no such locale: {error.orig}")
        opened = Database(server_url.set(database=name))
        schema.migrate(opened, create_application_tables=True)
        yield opened
        opened.close()
        connection.execute(sa.text(f"drop database {name} with (force)"))
    administration.dispose()


def answers(database: Database, function: str, values: list[str]) -> list[str | None]:
    with database.organization("a") as connection:
        rows = connection.execute(
            sa.text(
                f"select cliniko.{function}(value) from unnest(cast(:values as text[])) with ordinality as t (value, n)"
                " order by n"
            ),
            {"values": values},
        )
        return list(rows.scalars())


@pytest.mark.skipif(unicodedata.unidata_version != FILE_VERSION, reason="another Unicode version than the file's")
def test_the_stored_function_is_what_the_generator_writes() -> None:
    assert sql("functions/casefold") == casefold.function()


def test_the_stored_function_says_of_which_unicode_version_it_is() -> None:
    assert f"(Unicode {FILE_VERSION})" in sql("functions/casefold")


@pytest.mark.parametrize("function", FUNCTIONS)
def test_every_character_has_pythons_answer_alone_and_between_others(database: Database, function: str) -> None:
    # Between others: a character may be folded only at the edge, or only in a text that is not ASCII.
    texts = ASSIGNED + [f"B{character} \u00c9{character}x" for character in _CHANGED]
    found = answers(database, function, texts)
    wrong = [
        (text, answer)
        for text, answer in zip(texts, found, strict=True)
        if answer != FUNCTIONS[function](text) and not _is_newer(text, answer)
    ]
    assert wrong == []


def _is_newer(text: str, answer: str | None) -> bool:
    """Whether the answer leaves out only what Python's Unicode has, and the function's, or the server's, has not."""
    return unicodedata.unidata_version != FILE_VERSION and answer is not None and text[-1] in answer


TEXTS = st.text(st.sampled_from(AWKWARD) | st.characters(exclude_characters="\x00", exclude_categories=["Cs", "Cn"]))


@settings(deadline=None, max_examples=max(10, settings.default.max_examples // 10))
@given(st.lists(TEXTS, min_size=30, max_size=60))
def test_any_text_has_pythons_answer(database: Database, texts: list[str]) -> None:
    for function, python in FUNCTIONS.items():
        assert answers(database, function, texts) == [python(text) for text in texts]


def test_no_text_has_no_key(database: Database) -> None:
    with database.organization("a") as connection:
        row = connection.execute(
            sa.text("select cliniko.casefold(null), cliniko.name_key(null), cliniko.email_key(null)")
        )
        assert row.one() == (None, None, None)


def test_a_long_text_has_pythons_answer(database: Database) -> None:
    long = "İSTANBUL\u2003Straße " * 20_000
    for function, python in FUNCTIONS.items():
        assert answers(database, function, [long]) == [python(long)]


def test_a_column_that_ignores_case_does_not_disturb(database: Database) -> None:
    columns = ("organization_id", "cliniko_patient_id", "name", "email")
    try:
        with database.operator() as connection:
            connection.exec_driver_sql(
                "create collation public.anyhow (provider = icu, locale = 'und-u-ks-level2', deterministic = false)"
            )
    except DataError:
        pytest.skip("this server has no ICU")
    with database.operator() as connection:
        for column in columns:
            connection.exec_driver_sql(f"alter table public.contacts alter {column} type text collate public.anyhow")
        connection.exec_driver_sql(
            f"insert into public.contacts ({', '.join(columns)}) values ('a', '7', 'JOS\u00c9 Stra\u00dfe', '\u00c4@X')"
        )
    with database.organization("a") as connection:
        connection.execute(sa.text("select patient_id, status from (" + sql("contact_mapping") + ") as mapping"))
        row = connection.execute(
            sa.text(
                "select name, cliniko.name_key(name), cliniko.email_key(email) from cliniko.organization_contacts()"
            )
        ).one()
    assert tuple(row) == ("JOS\u00c9 Stra\u00dfe", "jos\u00e9 strasse", "\u00e4@x")


INSTANTS = st.datetimes(
    min_value=datetime(1, 1, 1),  # noqa: DTZ001
    max_value=datetime(9999, 12, 31, 23, 59, 59, 999_999),  # noqa: DTZ001
    timezones=st.just(UTC),
)


@settings(deadline=None, max_examples=max(10, settings.default.max_examples // 10))
@given(st.lists(INSTANTS, min_size=10, max_size=40))
def test_an_instant_is_written_as_cliniko_does(database: Database, instants: list[datetime]) -> None:
    instants += [each.replace(microsecond=fraction) for each in instants[:5] for fraction in (0, 100, 120_000)]
    with database.organization("a") as connection:
        connection.execute(sa.text("set local timezone = 'Australia/Sydney'"))
        found = connection.execute(
            sa.text(
                "select cliniko.instant(at) from unnest(cast(:values as timestamptz[])) with ordinality as t (at, n)"
                " order by n"
            ),
            {"values": instants},
        ).scalars()
        assert list(found) == [_written(instant) for instant in instants]


def _written(instant: datetime) -> str:
    text = f"{instant.year:04}-{instant:%m-%dT%H:%M:%S}"
    return text + (f".{instant.microsecond:06}".rstrip("0") if instant.microsecond else "") + "Z"


def test_a_whole_second_keeps_its_zeros(database: Database) -> None:
    with database.organization("a") as connection:
        found = connection.execute(
            sa.text("select cliniko.instant(cast(:at as timestamptz))"),
            {"at": datetime(2020, 10, 20, 10, 10, 0, tzinfo=UTC)},
        )
        assert found.scalar_one() == "2020-10-20T10:10:00Z"
