"""The settings: what each variable accepts, and what an error says. The key file: test_encryption_key_file.py."""

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

# Constant: they are in the ids of tests, which several processes collect.
KEY = base64.urlsafe_b64encode(bytes(range(32))).decode()
OTHER_KEY = base64.urlsafe_b64encode(bytes(range(32, 64))).decode()
SECRET = "hunter2sEcReT"
VARIABLES = [str(field.validation_alias) for field in Settings.model_fields.values()]
DATABASE_URL = f"postgresql://clinic:{SECRET}@db.example:5432/clinic"


def refusal(**environ: str) -> str:
    """Return the error message for these variables, after a check for secrets."""
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
        "vanished_share_limit": 0.2,
        "sync_every_minutes": 60,
        "full_sync_at": time(2),
        "full_sync_spread_minutes": 240,
        "compare_counts_every_hours": 24,
        "fresh_within_minutes": 180,
        "unmatched_share_limit": 0.5,
        "alert_urls": (),
        "alert_after_failures": 3,
        "alert_repeat_hours": 24,
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
    assert len(VARIABLES) == 26
    for blank in ("", " \t"):
        assert load_settings(dict.fromkeys(VARIABLES, blank)) == load_settings({})


READ = [
    ("DATABASE_URL", DATABASE_URL, "database_url", DATABASE_URL),
    ("CREDENTIALS_ENCRYPTION_KEY", f" {KEY} ,{OTHER_KEY},", "encryption_keys", [KEY, OTHER_KEY]),
    ("CLINIKO_CONTACT_EMAIL", " it@clinic.example ", "contact_email", "it@clinic.example"),
    ("CLINIKO_REQUESTS_PER_MINUTE", "60", "requests_per_minute", 60),
    (
        "CLINIKO_ALLOWED_HOSTS", "localhost:8080, Proxy.Example,[::1]:9", "allowed_hosts",
        {"localhost:8080", "proxy.example", "[::1]:9"},
    ),
    ("CLINIKO_PIPELINE_HOME", "state", "home", Path("state").absolute()),
    ("CLINIKO_PIPELINE_HOME", "state", "dagster_home", Path("state/dagster").absolute()),
    ("DAGSTER_HOME", "~/instance", "dagster_home", Path("~/instance").expanduser()),
    ("CLINIKO_ACTIVITY_WINDOW_DAYS", "90", "activity_window_days", 90),
    ("CLINIKO_COUNT_NO_SHOWS", "false", "count_no_shows", False),
    ("CLINIKO_VANISHED_SHARE_LIMIT", "0.05", "vanished_share_limit", 0.05),
    ("CLINIKO_SYNC_EVERY_MINUTES", "15", "sync_every_minutes", 15),
    ("CLINIKO_FULL_SYNC_AT", "14:30", "full_sync_at", time(14, 30)),
    ("CLINIKO_FULL_SYNC_SPREAD_MINUTES", "30", "full_sync_spread_minutes", 30),
    ("CLINIKO_COMPARE_COUNTS_EVERY_HOURS", "12", "compare_counts_every_hours", 12),
    ("CLINIKO_FRESH_WITHIN_MINUTES", "45", "fresh_within", timedelta(minutes=45)),
    ("CLINIKO_UNMATCHED_SHARE_LIMIT", "0.3", "unmatched_share_limit", 0.3),
    (
        "CLINIKO_ALERT_URLS", "mailto://a:b@host?to=x@y.example,z@y.example, json://hook/path\nslack://t/o/k",
        "alert_urls", ["mailto://a:b@host?to=x@y.example,z@y.example", "json://hook/path", "slack://t/o/k"],
    ),
    ("CLINIKO_ALERT_AFTER_FAILURES", "5", "alert_after_failures", 5),
    ("CLINIKO_ALERT_REPEAT_HOURS", "0", "alert_repeat_hours", 0),
    ("CLINIKO_UI_URL", "https://dagster.clinic.example/", "ui_url", "https://dagster.clinic.example"),
]  # fmt: skip


@pytest.mark.parametrize(("variable", "text", "field", "value"), READ)
def test_variable_is_read(variable, text, field, value):
    settings = load_settings({variable: text})
    read = getattr(settings, field)
    assert (secrets_of(read) if isinstance(read, tuple) else read) == value
    assert settings.embedded_database == (variable != "DATABASE_URL")


def test_process_environment_is_read_by_default(monkeypatch):
    monkeypatch.setenv("CLINIKO_REQUESTS_PER_MINUTE", "77")
    assert load_settings().requests_per_minute == 77
    assert load_settings({}).requests_per_minute == 200


def test_other_variables_are_ignored():
    assert load_settings({"database_url": "x", "HOME": "/h", "home": "/h", "CLINIKO_ELSE": "1"}) == load_settings({})


def test_settings_are_frozen():
    with pytest.raises(ValidationError):
        load_settings({}).requests_per_minute = 1


def test_secrets_are_in_no_text_form():
    settings = load_settings({"DATABASE_URL": DATABASE_URL, "CREDENTIALS_ENCRYPTION_KEY": KEY})
    for text in (repr(settings), str(settings), f"{settings}", str(list(settings.__rich_repr__()))):
        assert SECRET not in text
        assert KEY not in text


@pytest.mark.parametrize(
    "given_url",
    [
        "postgresql://u:p%40@h:5432/db",
        "postgres:///db?host=/run/postgresql&port=5433",
        "postgresql+psycopg://u@[::1]:5432/db",
        "postgresql+psycopg2://h/my%20db?sslmode=require",
    ],
)
def test_postgresql_url_is_kept_as_given(given_url):
    url = load_settings({"DATABASE_URL": f" {given_url}\n"}).database_url
    assert url == given_url
    assert make_url(url).database in {"db", "my db"}
    assert load_settings({"DATABASE_URL": "PostgreSQL://H/Db"}).database_url == "postgresql://H/Db"


@given(st.text("u:@/?#[]%.,0aé \\", max_size=30))
@hypothesis_settings(max_examples=examples(60))
def test_accepted_database_url_is_valid_for_sqlalchemy(rest):
    with suppress(SettingsError):
        url = make_url(load_settings({"DATABASE_URL": f"postgresql://{rest}"}).database_url)
        assert url.database
        assert "@" not in (url.host or "")


@pytest.mark.parametrize(
    ("url", "system"), [(f"sqlite:///{SECRET}.db", "(sqlite)"), (f"MongoDB+srv://u:{SECRET}@h/db", "(mongodb)")]
)
def test_url_of_another_database_system_is_refused_by_name(url, system):
    message = refusal(DATABASE_URL=url)
    assert message.startswith("DATABASE_URL points at another database system")
    assert system in message
    assert "PostgreSQL" in message


def test_url_with_another_driver_is_refused_by_name():
    assert "asks for the driver asyncpg" in refusal(DATABASE_URL=f"postgresql+asyncpg://u:{SECRET}@h/db")


@pytest.mark.parametrize(
    ("url", "complaint"),
    [
        (SECRET, "is not a database URL"),
        (f"postgresql:u:{SECRET}@h/db", "is not a database URL"),
        (f"://u:{SECRET}@h/db", "is not a database URL"),
        (f"postgresql://u:{SECRET}@h/", "names no database"),
        (f"postgresql://u:{SECRET}@h?sslmode=require", "names no database"),
        (f"postgresql://u:{SECRET}/x@h/db", "percent-encode"),
        (f"postgresql://u:{SECRET}#x@h/db", "percent-encode"),
        (f"postgresql://u:{SECRET}?x@h/db", "percent-encode"),
        (f"postgresql://h/db/{SECRET}", "percent-encode"),
        (f"postgresql://u:{SECRET}@x@h/db", "percent-encode"),
        (f"postgresql://u:{SECRET}@h:port/db", "percent-encode"),
        (f"postgresql://u:{SECRET}@[::1/db", "percent-encode"),
        (f"postgresql://u:{SECRET}@[::1]x/db", "percent-encode"),
        (f"postgresql://u:{SECRET}@h:/db", "percent-encode"),
        (f"postgresql://u:{SECRET}@h/db\nx", "control character"),
    ],
)
def test_unusable_database_url_is_refused_with_its_reason(url, complaint):
    message = refusal(DATABASE_URL=url)
    assert message.startswith("DATABASE_URL ")
    assert complaint in message


@given(st.text(min_size=1).filter(str.strip))
@hypothesis_settings(max_examples=examples(30))
def test_any_text_is_a_database_url_or_a_settings_error(text):
    with suppress(SettingsError):
        assert load_settings({"DATABASE_URL": text}).database_url


@pytest.mark.parametrize("value", [SECRET, KEY[:-1], f"{KEY};{OTHER_KEY}", f"{KEY},{SECRET}", "\u00e9" * 43 + "="])
def test_malformed_fernet_key_is_refused_unseen(value):
    message = refusal(CREDENTIALS_ENCRYPTION_KEY=value)
    assert message.startswith("CREDENTIALS_ENCRYPTION_KEY ")
    assert KEY_COMMAND in message
    assert value not in message
    assert KEY[:-2] not in message
    assert "number 2 of 3" in refusal(CREDENTIALS_ENCRYPTION_KEY=f"{KEY},{SECRET},{OTHER_KEY}")


INVALID_EMAILS = [
    "it", "it@clinic", "a b@clinic.example", "it(x)@clinic.example", "it@clinic..example", "it@clinic.example\r\nX: y",
    "\u00efe@clinic.example",
]  # fmt: skip
INVALID_HOSTS = [
    "http://localhost", "localhost:", "localhost:0", "u:p@localhost:80", "*.example", "::1", "[::1%eth0]",
    "localhost:\u0661", "a..b", "-a", "ok.example,http://x", "caf\u00e9.example",
]  # fmt: skip


@pytest.mark.parametrize(
    ("variable", "good", "bad"),
    [
        ("CLINIKO_REQUESTS_PER_MINUTE", ["1", " 200 ", "100000"], ["0", "100001", "1.5", "many", "1e3", "9" * 5000]),
        ("CLINIKO_ACTIVITY_WINDOW_DAYS", ["1", "60", "3650"], ["0", "-60", "3651", "sixty", "1e9"]),
        ("CLINIKO_COUNT_NO_SHOWS", ["true", "FALSE", "1", "0", "yes", "off"], ["maybe", "2", "truefalse"]),
        ("CLINIKO_SYNC_EVERY_MINUTES", ["0", "1", "60", "1440"], ["-1", "1441", "hourly", "1.5"]),
        ("CLINIKO_FULL_SYNC_AT", ["00:00", "23:59", "off", "OFF"], ["24:00", "2:30", "02:60", "noon", "02:30Z"]),
        ("CLINIKO_FULL_SYNC_SPREAD_MINUTES", ["0", "240", "1439"], ["-1", "1440", "all night"]),
        ("CLINIKO_COMPARE_COUNTS_EVERY_HOURS", ["0", "24", "168"], ["-1", "169", "daily"]),
        ("CLINIKO_FRESH_WITHIN_MINUTES", ["1", "43200"], ["0", "43201", "soon"]),
        ("CLINIKO_UNMATCHED_SHARE_LIMIT", ["0", "0.5", "1"], ["-0.1", "1.1", "half", "nan"]),
        ("CLINIKO_ALERT_AFTER_FAILURES", ["1", "100"], ["0", "101", "often"]),
        ("CLINIKO_ALERT_REPEAT_HOURS", ["0", "8760"], ["-1", "8761", "weekly"]),
        (
            "CLINIKO_ALERT_URLS",
            ["json://hook", "mailtos://u:p@h?to=a@b.example,c@d.example"],
            ["ops@clinic.example", "://x", ",", "json://", "json://hook, operator"],
        ),
        (
            "CLINIKO_UI_URL",
            ["http://127.0.0.1:3000", "https://dagster.clinic.example/prefix/"],
            [
                "dagster.clinic.example",
                "ftp://clinic.example",
                "https://u:p@clinic.example",
                "https://",
                "https://h/?a=b",
            ],
        ),
        ("CLINIKO_VANISHED_SHARE_LIMIT", ["0", "0.2", "1", "1.0"], ["-0.1", "1.01", "20", "20%", "nan", "inf", "few"]),
        ("CLINIKO_CONTACT_EMAIL", ["it@clinic.example", "o'neil+c@sub.clinic.example"], INVALID_EMAILS),
        ("CLINIKO_ALLOWED_HOSTS", ["localhost", "[::1]:65535", "my_sandbox:80", "a.b-c.example,", ","], INVALID_HOSTS),
        ("CLINIKO_PIPELINE_HOME", ["~", "a/b", "/a/b"], ["~no-such-user-here/x"]),
        ("DAGSTER_HOME", ["~", "a/b", "/a/b"], ["~no-such-user-here/x"]),
    ],
)
def test_variable_takes_valid_and_refuses_invalid_values(variable, good, bad):
    for value in good:
        load_settings({variable: value})
    for value in bad:
        message = refusal(**{variable: value})
        assert message.startswith(f"{variable} "), value
        assert message.count(".") <= 3, message
        assert len(message) < 300


def test_error_lists_all_problems():
    accepts_any_text = {"CLINIKO_PIPELINE_HOME", "DAGSTER_HOME", "API_OIDC_AUDIENCE", "API_OIDC_ORGANIZATION_CLAIM"}
    names = [name for name in VARIABLES if name not in accepts_any_text]
    message = refusal(**(dict.fromkeys(names, SECRET) | {"CLINIKO_ALLOWED_HOSTS": f"http://{SECRET}"}))
    assert [word for word in message.split() if word in names] == names
    # The default of DAGSTER_HOME depends on the home.
    assert "DAGSTER_HOME" not in refusal(CLINIKO_PIPELINE_HOME="~no-such-user-here")


def test_user_agent_names_the_contact():
    settings = load_settings({"CLINIKO_CONTACT_EMAIL": "it@clinic.example"})
    assert settings.user_agent == "cliniko_pipeline (it@clinic.example)"
    assert settings.user_agent_for("http://localhost:8080/v1") == settings.user_agent
    assert settings.require_contact_email("https://api.au1.cliniko.com/v1") == "it@clinic.example"
    with pytest.raises(SettingsError, match="CLINIKO_CONTACT_EMAIL is not set"):
        _ = load_settings({}).user_agent


@pytest.mark.parametrize("url", ["http://localhost:8080/v1", "http://[::1]:80/v1"])
def test_loopback_host_needs_no_contact(url):
    assert load_settings({}).user_agent_for(url) == "cliniko_pipeline (nobody@example.org)"


@pytest.mark.parametrize(
    "url",
    [
        "https://api.au1.cliniko.com/v1",
        "https://localhost.cliniko.com",
        "https://127.0.0.1@api.au1.cliniko.com/v1",
        "localhost",
        "http://[::1",
    ],
)
def test_other_host_needs_a_contact(url):
    with pytest.raises(SettingsError, match="CLINIKO_CONTACT_EMAIL is not set"):
        load_settings({}).user_agent_for(url)


def test_imports_read_no_variable():
    program = "import cliniko_pipeline.settings, cliniko_pipeline.credentials.vault"
    broken = {**os.environ, "DATABASE_URL": "junk", "CLINIKO_REQUESTS_PER_MINUTE": "junk"}
    assert subprocess.run([sys.executable, "-c", program], env=broken, check=False).returncode == 0
