"""The settings: what each variable accepts, what its refusal says, and the key that is made by itself."""

import base64
import os
import subprocess
import sys
import traceback
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import time, timedelta
from pathlib import Path

import pytest
from cryptography.fernet import Fernet
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from pydantic import ValidationError
from sqlalchemy.engine import make_url

from cliniko_pipeline.errors import SettingsError
from cliniko_pipeline.settings import KEY_COMMAND, load_settings
from cliniko_pipeline_tests.support.properties import examples

# Always the same: they stand in the names of tests, which several processes collect.
KEY = base64.urlsafe_b64encode(bytes(range(32))).decode()
OTHER_KEY = base64.urlsafe_b64encode(bytes(range(32, 64))).decode()
SECRET = "hunter2sEcReT"
DATABASE_URL = f"postgresql://clinic:{SECRET}@db.example:5432/clinic"


def refusal(**environ: str) -> str:
    """The message that these variables are refused with; nothing secret may hang on the error."""
    with pytest.raises(SettingsError) as caught:
        load_settings(environ)
    assert caught.value.__context__ is None
    assert SECRET not in "".join(traceback.format_exception(caught.value))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def secrets_of(keys) -> list[str]:
    return [key.get_secret_value() for key in keys]


def test_an_empty_environment_gives_the_documented_defaults(monkeypatch, tmp_path):
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
    names = {str(field.validation_alias) for field in type(load_settings({})).model_fields.values()}
    assert len(names) == 26
    assert load_settings(dict.fromkeys(names, "")) == load_settings(dict.fromkeys(names, " \t")) == load_settings({})


def test_every_variable_is_read(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    settings = load_settings(
        {
            "DATABASE_URL": DATABASE_URL,
            "CREDENTIALS_ENCRYPTION_KEY": f" {KEY} ,{OTHER_KEY},",
            "CLINIKO_CONTACT_EMAIL": " it@clinic.example ",
            "CLINIKO_REQUESTS_PER_MINUTE": "60",
            "CLINIKO_ALLOWED_HOSTS": "localhost:8080, Proxy.Example,[::1]:9",
            "DAGSTER_HOME": "instance",
            "CLINIKO_PIPELINE_HOME": "state",
            "CLINIKO_ACTIVITY_WINDOW_DAYS": "90",
            "CLINIKO_COUNT_NO_SHOWS": "false",
            "CLINIKO_VANISHED_SHARE_LIMIT": "0.05",
            "CLINIKO_SYNC_EVERY_MINUTES": "15",
            "CLINIKO_FULL_SYNC_AT": "14:30",
            "CLINIKO_FULL_SYNC_SPREAD_MINUTES": "30",
            "CLINIKO_COMPARE_COUNTS_EVERY_HOURS": "12",
            "CLINIKO_FRESH_WITHIN_MINUTES": "45",
            "CLINIKO_UNMATCHED_SHARE_LIMIT": "0.3",
            "CLINIKO_ALERT_URLS": "mailto://a:b@host?to=x@y.example,z@y.example, json://hook/path\nslack://t/o/k",
            "CLINIKO_ALERT_AFTER_FAILURES": "5",
            "CLINIKO_ALERT_REPEAT_HOURS": "0",
            "CLINIKO_UI_URL": "https://dagster.clinic.example/",
        }
    )
    assert settings.database_url == DATABASE_URL
    assert not settings.embedded_database
    assert secrets_of(settings.encryption_keys) == [KEY, OTHER_KEY]
    assert settings.contact_email == "it@clinic.example"
    assert settings.requests_per_minute == 60
    assert settings.allowed_hosts == {"localhost:8080", "proxy.example", "[::1]:9"}
    assert settings.dagster_home == tmp_path / "instance"
    assert settings.home == tmp_path / "state"
    assert settings.activity_window_days == 90
    assert settings.count_no_shows is False
    assert settings.vanished_share_limit == 0.05
    assert settings.sync_every_minutes == 15
    assert settings.full_sync_at == time(14, 30)
    assert settings.full_sync_spread_minutes == 30
    assert settings.compare_counts_every_hours == 12
    assert settings.fresh_within == timedelta(minutes=45)
    assert settings.unmatched_share_limit == 0.3
    assert secrets_of(settings.alert_urls) == [
        "mailto://a:b@host?to=x@y.example,z@y.example",
        "json://hook/path",
        "slack://t/o/k",
    ]
    assert settings.alert_after_failures == 5
    assert settings.alert_repeat_hours == 0
    assert settings.ui_url == "https://dagster.clinic.example"


def test_without_an_argument_the_process_environment_is_read(monkeypatch):
    monkeypatch.setenv("CLINIKO_REQUESTS_PER_MINUTE", "77")
    assert load_settings().requests_per_minute == 77
    assert load_settings({}).requests_per_minute == 200


def test_variables_of_other_programs_and_other_cases_are_none_of_ours():
    assert load_settings({"database_url": "x", "HOME": "/h", "home": "/h", "CLINIKO_ELSE": "1"}) == load_settings({})


def test_the_dagster_instance_follows_the_home(tmp_path):
    settings = load_settings({"CLINIKO_PIPELINE_HOME": str(tmp_path)})
    assert settings.dagster_home == tmp_path / "dagster"


def test_settings_do_not_change():
    with pytest.raises(ValidationError):
        load_settings({}).requests_per_minute = 1


def test_no_secret_is_in_any_text_form():
    settings = load_settings({"DATABASE_URL": DATABASE_URL, "CREDENTIALS_ENCRYPTION_KEY": KEY})
    for text in (repr(settings), str(settings), f"{settings}", str(list(settings.__rich_repr__()))):
        assert SECRET not in text
        assert KEY not in text


@pytest.mark.parametrize("scheme", ["postgresql", "postgres", "postgresql+psycopg", "postgresql+psycopg2"])
@pytest.mark.parametrize(
    "rest",
    ["u:p%40@h:5432/db", "h/db", "/db?host=/run/postgresql&port=5433", "u@[::1]:5432/db", "h/my%20db?sslmode=require"],
)
def test_postgresql_urls_are_kept_as_given(scheme, rest):
    url = load_settings({"DATABASE_URL": f" {scheme}://{rest}\n"}).database_url
    assert url == f"{scheme}://{rest}"
    assert make_url(url).database in {"db", "my db"}


@given(st.text("u:@/?#[]%.,0aé \\", max_size=30))
@hypothesis_settings(max_examples=examples(1000))
def test_what_is_taken_as_a_database_url_is_one_for_sqlalchemy_too(rest):
    with suppress(SettingsError):
        url = make_url(load_settings({"DATABASE_URL": f"postgresql://{rest}"}).database_url)
        assert url.database
        assert "@" not in (url.host or "")


def test_the_scheme_of_the_database_url_is_kept_in_lower_case():
    assert load_settings({"DATABASE_URL": "PostgreSQL://H/Db"}).database_url == "postgresql://H/Db"


@pytest.mark.parametrize(
    ("url", "system"),
    [
        (f"mysql://u:{SECRET}@h/db", "(mysql)"),
        (f"mysql+pymysql://u:{SECRET}@h/db", "(mysql)"),
        (f"sqlite:///{SECRET}.db", "(sqlite)"),
        (f"mssql+pyodbc://u:{SECRET}@h/db", "(mssql)"),
        (f"oracle://u:{SECRET}@h/db", "(oracle)"),
        (f"MongoDB+srv://u:{SECRET}@h/db", "(mongodb)"),
    ],
)
def test_another_database_system_is_named(url, system):
    message = refusal(DATABASE_URL=url)
    assert message.startswith("DATABASE_URL points at another database system")
    assert system in message
    assert "PostgreSQL" in message


def test_another_driver_is_named():
    assert "asks for the driver asyncpg" in refusal(DATABASE_URL=f"postgresql+asyncpg://u:{SECRET}@h/db")


@pytest.mark.parametrize(
    ("url", "complaint"),
    [
        (SECRET, "is not a database URL"),
        (f"host=h password={SECRET} dbname=d", "is not a database URL"),
        (f"postgresql:u:{SECRET}@h/db", "is not a database URL"),
        (f"://u:{SECRET}@h/db", "is not a database URL"),
        (f"jdbc:postgresql://h/db?password={SECRET}", "is not a database URL"),
        (f"postgresql://u:{SECRET}@h", "names no database"),
        (f"postgresql://u:{SECRET}@h/", "names no database"),
        (f"postgresql://u:{SECRET}@h?sslmode=require", "names no database"),
        ("postgresql://", "names no database"),
        (f"postgresql://u:{SECRET}/x@h/db", "percent-encode"),
        (f"postgresql://u:12/{SECRET}@h/db", "percent-encode"),
        (f"postgresql://u:{SECRET}#x@h/db", "percent-encode"),
        (f"postgresql://u:{SECRET}?x@h/db", "percent-encode"),
        (f"postgresql://u@h/db#{SECRET}", "percent-encode"),
        (f"postgresql://h/db/{SECRET}", "percent-encode"),
        (f"postgresql://u:{SECRET}@x@h/db", "percent-encode"),
        (f"postgresql://u:{SECRET}@h:port/db", "percent-encode"),
        (f"postgresql://u:{SECRET}@h:70000/db", "percent-encode"),
        (f"postgresql://u:{SECRET}@[::1/db", "percent-encode"),
        (f"postgresql://u:{SECRET}@[::1]x/db", "percent-encode"),
        (f"postgresql://u:{SECRET}@h:/db", "percent-encode"),
        (f"postgresql://h/db?user=u@{SECRET}", "percent-encode"),
        (f"postgresql://u:{SECRET}@h/db\nx", "control character"),
        (f"postgresql://u:{SECRET}@h/d\0b", "control character"),
    ],
)
def test_a_database_url_that_cannot_be_used_says_why(url, complaint):
    message = refusal(DATABASE_URL=url)
    assert message.startswith("DATABASE_URL ")
    assert complaint in message


@given(st.text(min_size=1).filter(str.strip))
@hypothesis_settings(deadline=None)
def test_any_text_as_database_url_is_taken_or_refused_as_a_setting(text):
    # SettingsError is the only way out other than a settings object; any other exception fails here.
    with suppress(SettingsError):
        assert load_settings({"DATABASE_URL": text}).database_url


@pytest.mark.parametrize(
    "value",
    [
        SECRET,
        KEY[:-1],
        KEY[:-2],
        f"{KEY}{SECRET}",
        f"{KEY} {OTHER_KEY}",
        f"{KEY};{OTHER_KEY}",
        f"{KEY},{SECRET}",
        "\u00e9" * 43 + "=",
    ],
)
def test_what_is_no_fernet_key_is_refused_without_showing_it(value):
    message = refusal(CREDENTIALS_ENCRYPTION_KEY=value)
    assert message.startswith("CREDENTIALS_ENCRYPTION_KEY ")
    assert KEY_COMMAND in message
    assert value not in message
    assert KEY[:-2] not in message


def test_the_message_counts_keys_so_that_the_wrong_one_is_found():
    assert "number 2 of 3" in refusal(CREDENTIALS_ENCRYPTION_KEY=f"{KEY},{SECRET},{OTHER_KEY}")


@pytest.mark.parametrize(
    ("variable", "good", "bad"),
    [
        (
            "CLINIKO_REQUESTS_PER_MINUTE",
            ["1", "200", " 200 ", "100000"],
            ["0", "-1", "100001", "1.5", "many", "1e3", "9" * 5000],
        ),
        ("CLINIKO_ACTIVITY_WINDOW_DAYS", ["1", "60", "3650"], ["0", "-60", "3651", "sixty", "1e9"]),
        ("CLINIKO_COUNT_NO_SHOWS", ["true", "FALSE", "1", "0", "yes", "off"], ["maybe", "2", "truefalse"]),
        ("CLINIKO_SYNC_EVERY_MINUTES", ["0", "1", "60", "1440"], ["-1", "1441", "hourly", "1.5"]),
        (
            "CLINIKO_FULL_SYNC_AT",
            ["00:00", "02:30", "23:59", "off", "OFF"],
            ["24:00", "2:30", "02:60", "noon", "02:30Z"],
        ),
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
        (
            "CLINIKO_CONTACT_EMAIL",
            ["it@clinic.example", "a.b+c@sub.clinic.example", "o'neil@clinic.example"],
            [
                "it",
                "it@",
                "@clinic.example",
                "it@clinic",
                "a b@clinic.example",
                "it@clinic.example (x)",
                "it@x.example, me@x.example",
                "it@clinic..example",
                "it@clinic.example\r\nX: y",
                "\u00efe@clinic.example",
            ],
        ),
        (
            "CLINIKO_ALLOWED_HOSTS",
            [
                "localhost",
                "localhost:8080",
                "127.0.0.1:1",
                "[::1]",
                "[::1]:65535",
                "my_sandbox:80",
                "a.b-c.example,",
                ",",
            ],
            [
                "http://localhost",
                "localhost/v1",
                "localhost:",
                "localhost:0",
                "localhost:65536",
                "localhost:http",
                "u@localhost",
                "u:p@localhost:80",
                "*.example",
                "a b",
                "::1",
                "[::1",
                "[x]",
                "[::1]x",
                "[::1%eth0]",
                "localhost:\u0661",
                "a?b",
                "a#b",
                "a..b",
                "-a",
                ".",
                "ok.example,http://x",
                "caf\u00e9.example",
                "a\tb",
            ],
        ),
        ("CLINIKO_PIPELINE_HOME", ["~", "a/b", "/a/b"], ["~no-such-user-here/x"]),
        ("DAGSTER_HOME", ["~", "a/b", "/a/b"], ["~no-such-user-here/x"]),
    ],
)
def test_each_variable_takes_its_good_values_and_refuses_its_bad_ones(variable, good, bad):
    for value in good:
        load_settings({variable: value})
    for value in bad:
        message = refusal(**{variable: value})
        assert message.startswith(f"{variable} "), value
        assert message.count(".") <= 3, message
        assert len(message) < 300


def test_paths_are_absolute_whatever_is_given(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    settings = load_settings({"CLINIKO_PIPELINE_HOME": "~/state", "DAGSTER_HOME": "x"})
    assert settings.home == tmp_path / "state"
    assert settings.dagster_home == Path.cwd() / "x"


def test_all_problems_are_told_at_once():
    message = refusal(
        DATABASE_URL=f"mysql://{SECRET}@h/d",
        CREDENTIALS_ENCRYPTION_KEY=SECRET,
        CLINIKO_CONTACT_EMAIL=SECRET,
        CLINIKO_REQUESTS_PER_MINUTE=SECRET,
        CLINIKO_ALLOWED_HOSTS=f"http://{SECRET}",
        CLINIKO_PIPELINE_HOME="~no-such-user-here",
        CLINIKO_ACTIVITY_WINDOW_DAYS=SECRET,
        CLINIKO_COUNT_NO_SHOWS=SECRET,
        CLINIKO_VANISHED_SHARE_LIMIT=SECRET,
        CLINIKO_SYNC_EVERY_MINUTES=SECRET,
        CLINIKO_FULL_SYNC_AT=SECRET,
        CLINIKO_FULL_SYNC_SPREAD_MINUTES=SECRET,
        CLINIKO_COMPARE_COUNTS_EVERY_HOURS=SECRET,
        CLINIKO_FRESH_WITHIN_MINUTES=SECRET,
        CLINIKO_UNMATCHED_SHARE_LIMIT=SECRET,
        CLINIKO_ALERT_URLS=SECRET,
        CLINIKO_ALERT_AFTER_FAILURES=SECRET,
        CLINIKO_ALERT_REPEAT_HOURS=SECRET,
        CLINIKO_UI_URL=SECRET,
    )
    named = [
        word for word in message.split() if word.startswith(("DATABASE_URL", "CREDENTIALS_", "CLINIKO_", "DAGSTER"))
    ]
    assert named == [
        "DATABASE_URL",
        "CREDENTIALS_ENCRYPTION_KEY",
        "CLINIKO_CONTACT_EMAIL",
        "CLINIKO_REQUESTS_PER_MINUTE",
        "CLINIKO_ALLOWED_HOSTS",
        "CLINIKO_PIPELINE_HOME",
        "CLINIKO_ACTIVITY_WINDOW_DAYS",
        "CLINIKO_COUNT_NO_SHOWS",
        "CLINIKO_VANISHED_SHARE_LIMIT",
        "CLINIKO_SYNC_EVERY_MINUTES",
        "CLINIKO_FULL_SYNC_AT",
        "CLINIKO_FULL_SYNC_SPREAD_MINUTES",
        "CLINIKO_COMPARE_COUNTS_EVERY_HOURS",
        "CLINIKO_FRESH_WITHIN_MINUTES",
        "CLINIKO_UNMATCHED_SHARE_LIMIT",
        "CLINIKO_ALERT_URLS",
        "CLINIKO_ALERT_AFTER_FAILURES",
        "CLINIKO_ALERT_REPEAT_HOURS",
        "CLINIKO_UI_URL",
    ]


def test_the_user_agent_names_a_contact():
    settings = load_settings({"CLINIKO_CONTACT_EMAIL": "it@clinic.example"})
    assert settings.user_agent == "cliniko_pipeline (it@clinic.example)"
    assert settings.user_agent_for("http://localhost:8080/v1") == settings.user_agent
    assert settings.require_contact_email("https://api.au1.cliniko.com/v1") == "it@clinic.example"


@pytest.mark.parametrize(
    "url",
    ["http://localhost:8080/v1", "http://127.0.0.1/v1", "http://127.9.9.9", "http://[::1]:80/v1"],
)
def test_a_loopback_host_needs_no_contact(url):
    assert load_settings({}).user_agent_for(url) == "cliniko_pipeline (nobody@example.org)"


@pytest.mark.parametrize(
    "url",
    [
        "https://api.au1.cliniko.com/v1",
        "https://proxy.example/v1",
        "https://localhost.cliniko.com",
        "https://127.0.0.1@api.au1.cliniko.com/v1",
        "https://10.0.0.1/v1",
        "localhost",
        "http://[::1",
        "",
    ],
)
def test_any_other_host_needs_a_contact(url):
    with pytest.raises(SettingsError, match="CLINIKO_CONTACT_EMAIL is not set"):
        load_settings({}).user_agent_for(url)


def test_the_plain_user_agent_needs_a_contact():
    with pytest.raises(SettingsError, match="CLINIKO_CONTACT_EMAIL is not set"):
        _ = load_settings({}).user_agent


@pytest.fixture
def embedded(tmp_path):
    return load_settings({"CLINIKO_PIPELINE_HOME": str(tmp_path / "state")})


@pytest.fixture
def key_file(embedded):
    return embedded.home / "encryption.key"


def test_a_key_that_is_set_is_used_and_no_file_is_made(tmp_path):
    settings = load_settings({"CREDENTIALS_ENCRYPTION_KEY": KEY, "CLINIKO_PIPELINE_HOME": str(tmp_path / "state")})
    assert secrets_of(settings.ensure_encryption_keys()) == [KEY]
    assert not settings.home.exists()


def test_with_an_operators_database_a_missing_key_is_an_error_that_says_how_to_make_one(tmp_path):
    settings = load_settings({"DATABASE_URL": DATABASE_URL, "CLINIKO_PIPELINE_HOME": str(tmp_path / "state")})
    with pytest.raises(SettingsError, match="CREDENTIALS_ENCRYPTION_KEY is not set") as caught:
        settings.ensure_encryption_keys()
    assert KEY_COMMAND in str(caught.value)
    assert not settings.home.exists()


def test_the_command_in_the_message_makes_a_key():
    python, flag, program = KEY_COMMAND.split(" ", 2)
    assert (python, flag, program[0], program[-1]) == ("python", "-c", "'", "'")
    made = subprocess.run([sys.executable, "-c", program[1:-1]], capture_output=True, text=True, check=True).stdout
    assert load_settings({"CREDENTIALS_ENCRYPTION_KEY": made}).encryption_keys


def test_the_embedded_database_gets_a_private_key_once(embedded, key_file):
    previous = os.umask(0)
    try:
        (first,) = secrets_of(embedded.ensure_encryption_keys())
    finally:
        os.umask(previous)
    Fernet(first)
    assert key_file.stat().st_mode & 0o777 == 0o600
    assert secrets_of(embedded.ensure_encryption_keys()) == [first]
    assert [path.name for path in embedded.home.iterdir()] == ["encryption.key"]


def test_a_key_once_made_is_used_from_a_home_that_can_only_be_read(embedded, monkeypatch):
    made = secrets_of(embedded.ensure_encryption_keys())

    def refuse(*_, **__):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr("tempfile.mkstemp", refuse)
    assert secrets_of(embedded.ensure_encryption_keys()) == made


def test_the_key_file_may_hold_old_keys_after_the_new_one(embedded, key_file):
    embedded.ensure_encryption_keys()
    key_file.write_text(f"{KEY},\n{OTHER_KEY}\n")
    assert secrets_of(embedded.ensure_encryption_keys()) == [KEY, OTHER_KEY]


def test_of_many_processes_at_once_all_use_the_same_key(tmp_path):
    program = (
        "import sys; from cliniko_pipeline.settings import load_settings; sys.stdin.readline();"
        "print(load_settings({'CLINIKO_PIPELINE_HOME': sys.argv[1]}).ensure_encryption_keys()[0].get_secret_value())"
    )
    command = [sys.executable, "-c", program, str(tmp_path / "state")]
    racers = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    with ThreadPoolExecutor(len(racers)) as pool:
        printed = list(pool.map(lambda racer: racer.communicate("go\n", timeout=60)[0], racers))
    assert len(set(printed)) == 1
    Fernet(printed[0].strip())


def test_whoever_comes_second_uses_the_first_ones_key(embedded, key_file, monkeypatch):
    def lose_the_race(self, target):
        key_file.write_text(KEY)
        key_file.chmod(0o600)
        os.link(target, self)

    monkeypatch.setattr(Path, "hardlink_to", lose_the_race)
    assert secrets_of(embedded.ensure_encryption_keys()) == [KEY]
    assert [path.name for path in embedded.home.iterdir()] == ["encryption.key"]


def test_a_race_of_threads_leaves_one_key_and_no_drafts(embedded):
    with ThreadPoolExecutor(8) as pool:
        keys = {tuple(secrets_of(made)) for made in pool.map(lambda _: embedded.ensure_encryption_keys(), range(8))}
    assert len(keys) == 1
    assert [path.name for path in embedded.home.iterdir()] == ["encryption.key"]


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o604, 0o660, 0o777])
def test_a_key_file_open_to_others_is_refused_with_the_remedy(embedded, key_file, mode):
    (key,) = secrets_of(embedded.ensure_encryption_keys())
    key_file.chmod(mode)
    with pytest.raises(SettingsError, match=f"mode {mode:04o}.*chmod 600") as caught:
        embedded.ensure_encryption_keys()
    assert key not in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"\n", b"nonsense", KEY.encode()[:-3], b"\xff\xfe", b"x" * 100_000])
def test_a_key_file_without_a_key_is_refused_and_left_alone(embedded, key_file, content):
    embedded.ensure_encryption_keys()
    key_file.write_bytes(content)
    with pytest.raises(SettingsError, match=r"The encryption key file .*encryption\.key"):
        embedded.ensure_encryption_keys()
    assert key_file.read_bytes() == content


def test_a_home_that_cannot_be_used_is_a_settings_error(embedded, key_file):
    embedded.home.write_text("a file where the directory should be")
    with pytest.raises(SettingsError, match="cannot be used"):
        embedded.ensure_encryption_keys()


def test_a_file_system_without_links_is_a_settings_error_with_a_way_out(embedded, monkeypatch):
    def refuse(self, target):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(Path, "hardlink_to", refuse)
    with pytest.raises(SettingsError, match=r"Operation not permitted.*set CREDENTIALS_ENCRYPTION_KEY"):
        embedded.ensure_encryption_keys()
    assert list(embedded.home.iterdir()) == []


def test_importing_reads_no_variable():
    program = "import cliniko_pipeline.settings, cliniko_pipeline.credentials.vault"
    broken = {**os.environ, "DATABASE_URL": "junk", "CLINIKO_REQUESTS_PER_MINUTE": "junk"}
    assert subprocess.run([sys.executable, "-c", program], env=broken, check=False).returncode == 0
