"""Tests of the values that each variable accepts, and of the texts of errors."""

import base64
import os
import subprocess
import sys
import traceback
from contextlib import suppress
from datetime import time, timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from pydantic import ValidationError
from sqlalchemy.engine import make_url

from cliniko_pipeline.errors import SettingsError
from cliniko_pipeline.settings import KEY_COMMAND, Settings, load_settings
from cliniko_pipeline_tests.support.properties import examples

# The keys are constants, because they are in the ids of tests, which several processes must collect alike.
KEY = base64.urlsafe_b64encode(bytes(range(32))).decode()
OTHER_KEY = base64.urlsafe_b64encode(bytes(range(32, 64))).decode()
SECRET = "hunter2sEcReT"
FIELDS = {str(field.validation_alias): name for name, field in Settings.model_fields.items()}
DATABASE_URL = f"postgresql://clinic:{SECRET}@db.example:5432/clinic"


def refusal(**environ: str) -> str:
    """Return the error message for these variables. Assert that it contains no secret."""
    with pytest.raises(SettingsError) as caught:
        load_settings(environ)
    assert caught.value.__context__ is None
    assert SECRET not in "".join(traceback.format_exception(caught.value))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def secrets_of(keys) -> list[str]:
    return [key.get_secret_value() for key in keys]


def test_empty_environment_gives_the_documented_defaults(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    settings = load_settings({})
    assert settings.model_dump() == {
        "database_url": None,
        "encryption_keys": (),
        "contact_email": None,
        "requests_per_minute": 200,
        "allowed_hosts": frozenset(),
        "home": tmp_path / ".cliniko",
        "dagster_home": tmp_path / ".cliniko" / "dagster",
        "activity_window_days": 60,
        "count_no_shows": True,
        "contacts_filter": None,
        "vanished_share_limit": 0.2,
        "lost_matches_share_limit": 0.2,
        "sync_every_minutes": 60,
        "full_sync_at": time(2),
        "full_sync_spread_minutes": 240,
        "compare_counts_every_hours": 24,
        "fresh_within_minutes": 180,
        "unmatched_share_limit": 0.5,
        "alert_urls": (),
        "max_clock_skew_minutes": 60,
        "alert_after_failures": 3,
        "alert_repeat_hours": 24,
        "keep_event_details_days": 3,
        "keep_runs_days": 30,
        "keep_syncs_days": 30,
        "keep_deliveries_days": 30,
        "keep_webhook_events_days": 3,
        "keep_refusals_days": 90,
        "trusted_proxies": (),
        "ui_hosts": frozenset(),
        "ui_url": "http://127.0.0.1:3000",
        "dagster_url": "http://127.0.0.1:3000",
        "api_requests_per_minute": 600,
        "oidc_issuer": None,
        "oidc_audience": None,
        "oidc_organization_claim": "org_id",
        "oidc_scopes": frozenset({"read"}),
    }
    assert settings.embedded_database
    assert list(tmp_path.iterdir()) == []


def test_blank_variables_count_as_unset():
    assert len(FIELDS) == 37
    for blank in ("", " \t"):
        assert load_settings(dict.fromkeys(FIELDS, blank)) == load_settings({})


def test_only_the_given_environment_is_read(monkeypatch):
    monkeypatch.setenv("CLINIKO_REQUESTS_PER_MINUTE", "77")
    assert load_settings().requests_per_minute == 77
    assert load_settings({"database_url": "x", "home": "/h", "CLINIKO_ELSE": "1"}) == load_settings({})


def test_settings_are_frozen():
    with pytest.raises(ValidationError):
        load_settings({}).requests_per_minute = 1


def test_secrets_are_in_no_text_form():
    settings = load_settings({"DATABASE_URL": DATABASE_URL, "CREDENTIALS_ENCRYPTION_KEY": KEY})
    for text in (repr(settings), str(settings), f"{settings}", str(list(settings.__rich_repr__()))):
        assert SECRET not in text
        assert KEY not in text


def test_postgresql_url_is_kept_as_given():
    for given_url in ("postgres:///db?host=/run/postgresql&port=5433", "postgresql+psycopg2://u:p%40@[::1]:5432/db"):
        settings = load_settings({"DATABASE_URL": f" {given_url}\n"})
        assert settings.database_url == given_url
        assert not settings.embedded_database
    assert load_settings({"DATABASE_URL": "PostgreSQL+psycopg://H/Db"}).database_url == "postgresql+psycopg://H/Db"


@given(st.text("u:@/?#[]%.,0aé \\", max_size=30).map("postgresql://{}".format) | st.text(min_size=1).filter(str.strip))
@hypothesis_settings(max_examples=examples(60))
def test_accepted_database_url_is_valid_for_sqlalchemy(text):
    with suppress(SettingsError):
        url = make_url(load_settings({"DATABASE_URL": text}).database_url)
        assert url.database
        assert "@" not in (url.host or "")


@pytest.mark.parametrize(
    ("url", "complaint"),
    [
        (f"sqlite:///{SECRET}.db", "points at another database system (sqlite)"),
        (f"MongoDB+srv://u:{SECRET}@h/db", "points at another database system (mongodb)"),
        (f"postgresql+asyncpg://u:{SECRET}@h/db", "asks for the driver asyncpg"),
        (f"postgresql:u:{SECRET}@h/db", "is not a database URL"),
        (f"://u:{SECRET}@h/db", "is not a database URL"),
        (f"postgresql://u:{SECRET}@h?sslmode=require", "names no database"),
        (f"postgresql://u@h/db#{SECRET}", "percent-encode"),
        (f"postgresql://u:{SECRET}?x@h/db", "percent-encode"),
        (f"postgresql://h/db/{SECRET}", "percent-encode"),
        (f"postgresql://u:{SECRET}@x@h/db", "percent-encode"),
        (f"postgresql://u:{SECRET}@[::1]x/db", "percent-encode"),
        (f"postgresql://u:{SECRET}@h:/db", "percent-encode"),
        (f"postgresql://u:{SECRET}@h/db\nx", "control character"),
    ],
)
def test_unusable_database_url_is_refused_with_its_reason(url, complaint):
    message = refusal(DATABASE_URL=url)
    assert message.startswith("DATABASE_URL ")
    assert complaint in message


@pytest.mark.parametrize("value", [KEY[:-1], f"{KEY},{SECRET}", "\u00e9" * 43 + "="])
def test_malformed_fernet_key_is_refused_unseen(value):
    message = refusal(CREDENTIALS_ENCRYPTION_KEY=value)
    assert message.startswith("CREDENTIALS_ENCRYPTION_KEY ")
    assert KEY_COMMAND in message
    assert value not in message
    assert KEY[:-2] not in message
    assert "number 2 of 3" in refusal(CREDENTIALS_ENCRYPTION_KEY=f"{KEY},{SECRET},{OTHER_KEY}")


HOSTS = "localhost:8080, Proxy.Example,[::1]:65535,"
INVALID_HOSTS = ["http://localhost", "a:", "a:0", "u:p@a:80", "*.example", "::1", "a..b", "-a", "ok.example,http://x"]
ALERTS = "mailto://a:b@host?to=x@y.example,z@y.example, json://hook/path\nslack://t/o/k"
INVALID_EMAILS = ["it", "it@clinic", "a b@c.example", "it(x)@c.example", "it@c..example", "it@c.example\r\nX: y"]
INVALID_UI_URLS = ["clinic.example", "ftp://clinic.example", "https://u:p@clinic.example", "https://", "https://h/?a=b"]


@pytest.mark.parametrize(
    ("variable", "good", "bad"),
    [
        ("CREDENTIALS_ENCRYPTION_KEY", {f" {KEY} ,{OTHER_KEY},": [KEY, OTHER_KEY]}, []),
        ("CLINIKO_CONTACT_EMAIL", {" o'neil+c@sub.clinic.example ": "o'neil+c@sub.clinic.example"}, INVALID_EMAILS),
        ("CLINIKO_REQUESTS_PER_MINUTE", {" 1 ": 1, "100000": 100_000}, ["0", "100001", "1.5", "many", "9" * 5000]),
        ("CLINIKO_ALLOWED_HOSTS", {HOSTS: {"localhost:8080", "proxy.example", "[::1]:65535"}}, INVALID_HOSTS),
        ("CLINIKO_PIPELINE_HOME", {"state": Path("state").absolute()}, ["~no-such-user-here/x"]),
        ("DAGSTER_HOME", {"~/instance": Path("~/instance").expanduser()}, ["~no-such-user-here/x"]),
        ("CLINIKO_ACTIVITY_WINDOW_DAYS", {"1": 1, "3650": 3650}, ["0", "3651", "sixty"]),
        ("CLINIKO_COUNT_NO_SHOWS", {"TRUE": True, "false": False, "off": False}, ["maybe", "2"]),
        (
            "CLINIKO_CONTACTS_FILTER",
            {
                each: each
                for each in ("kind = 'patient'", "(a or b) and (c)", "note <> ');--'", "a ~ '\\(' and \"b;\" = 1")
            },
            [
                *(
                    "true; drop table contacts",
                    "true -- all",
                    "true /* all */",
                    "name = $$x$$",
                    "name = E'\\'' or true",
                ),
                *("true) or (true", "(true", "true)", "name = 'it''s", 'true or "name'),
            ],
        ),
        ("CLINIKO_LOST_MATCHES_SHARE_LIMIT", {"0": 0, "1": 1}, ["-0.1", "1.01"]),
        ("CLINIKO_VANISHED_SHARE_LIMIT", {"0": 0, "0.05": 0.05, "1": 1}, ["-0.1", "1.01", "20%", "nan", "inf"]),
        ("CLINIKO_MAX_CLOCK_SKEW_MINUTES", {"1": 1, "1440": 1440}, ["0", "-5", "an hour"]),
        ("CLINIKO_SYNC_EVERY_MINUTES", {"0": 0, "1440": 1440}, ["-1", "1441", "hourly"]),
        ("CLINIKO_FULL_SYNC_AT", {"14:30": time(14, 30), "OFF": None}, ["24:00", "2:30", "02:60", "noon", "02:30Z"]),
        ("CLINIKO_FULL_SYNC_SPREAD_MINUTES", {"0": 0, "1439": 1439}, ["-1", "1440", "all night"]),
        ("CLINIKO_COMPARE_COUNTS_EVERY_HOURS", {"0": 0, "168": 168}, ["-1", "169", "daily"]),
        ("CLINIKO_FRESH_WITHIN_MINUTES", {"1": 1, "43200": 43_200}, ["0", "43201", "soon"]),
        ("CLINIKO_UNMATCHED_SHARE_LIMIT", {"0": 0, "0.3": 0.3, "1": 1}, ["-0.1", "1.1", "half", "nan"]),
        (
            "CLINIKO_ALERT_URLS",
            {ALERTS: ["mailto://a:b@host?to=x@y.example,z@y.example", "json://hook/path", "slack://t/o/k"]},
            ["ops@clinic.example", "://x", ",", "json://", "json://hook, operator"],
        ),
        ("CLINIKO_ALERT_AFTER_FAILURES", {"1": 1, "100": 100}, ["0", "101", "often"]),
        ("CLINIKO_ALERT_REPEAT_HOURS", {"0": 0, "8760": 8760}, ["-1", "8761", "weekly"]),
        ("CLINIKO_UI_URL", {"https://h.example/prefix/": "https://h.example/prefix"}, INVALID_UI_URLS),
    ],
)
def test_variable_takes_valid_and_refuses_invalid_values(variable, good, bad):
    for text, expected in good.items():
        value = getattr(load_settings({variable: text}), FIELDS[variable])
        assert (secrets_of(value) if isinstance(value, tuple) else value) == expected
    for text in bad:
        message = refusal(**{variable: text})
        assert message.startswith(f"{variable} "), text
        assert message.count(".") <= 3, message
        assert len(message) < 300


def test_derived_settings_follow_their_variables():
    settings = load_settings({"CLINIKO_PIPELINE_HOME": "state", "CLINIKO_FRESH_WITHIN_MINUTES": "45"})
    assert settings.dagster_home == Path("state/dagster").absolute()
    assert settings.fresh_within == timedelta(minutes=45)


def test_error_lists_all_problems():
    accepts_any_text = {"CLINIKO_PIPELINE_HOME", "DAGSTER_HOME", "API_OIDC_AUDIENCE", "API_OIDC_ORGANIZATION_CLAIM"}
    names = [name for name in FIELDS if name not in accepts_any_text]
    unlike = {
        "CLINIKO_ALLOWED_HOSTS": f"http://{SECRET}",
        "CLINIKO_UI_HOSTS": f"http://{SECRET}",
        "CLINIKO_CONTACTS_FILTER": f"({SECRET}",
    }
    message = refusal(**(dict.fromkeys(names, SECRET) | unlike))
    assert [word for word in message.split() if word in names] == names
    # The default of DAGSTER_HOME depends on the home.
    assert "DAGSTER_HOME" not in refusal(CLINIKO_PIPELINE_HOME="~no-such-user-here")


def test_user_agent_names_the_contact():
    settings = load_settings({"CLINIKO_CONTACT_EMAIL": "it@clinic.example"})
    for url in ("http://localhost:8080/v1", "https://api.au1.cliniko.com/v1"):
        assert settings.user_agent_for(url) == "cliniko_pipeline (it@clinic.example)"


def test_only_a_loopback_host_needs_no_contact():
    settings = load_settings({})
    assert settings.user_agent_for("http://[::1]:80/v1") == "cliniko_pipeline (nobody@example.org)"
    for url in ("https://127.0.0.1@api.au1.cliniko.com/v1", "localhost", "http://[::1"):
        with pytest.raises(SettingsError, match="CLINIKO_CONTACT_EMAIL is not set"):
            settings.user_agent_for(url)


def test_imports_read_no_variable():
    program = "import cliniko_pipeline.settings, cliniko_pipeline.credentials.vault"
    broken = {**os.environ, "DATABASE_URL": "junk", "CLINIKO_REQUESTS_PER_MINUTE": "junk"}
    assert subprocess.run([sys.executable, "-c", program], env=broken, check=False).returncode == 0
