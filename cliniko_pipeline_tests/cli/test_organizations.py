"""`cliniko-pipeline organizations` and `credentials`: who is synced, and with which key."""

import base64
import json
from datetime import UTC, datetime
from pathlib import Path

import pytest
import sqlalchemy as sa
from cryptography.fernet import Fernet
from sqlalchemy.dialects.postgresql import JSONB

from cliniko_pipeline.credentials.vault import ClinikoCredentials, Vault
from cliniko_pipeline.postgres import organizations
from cliniko_pipeline_tests.support.clinics import Clinics, small_clinic
from cliniko_pipeline_tests.support.environments import free_port
from cliniko_pipeline_tests.support.processes import CommandLine


@pytest.fixture
def account(clinics: Clinics):
    account = small_clinic("alpha")
    clinics.sandbox.add(account)
    return account


def test_an_organization_is_added_listed_disabled_enabled_and_removed(command: CommandLine, clinics, account) -> None:
    add = ["organizations", "add", "alpha", "--name", "New [i]name[/i]", "--api-url", clinics.sandbox.base_url(account)]
    with clinics.database.operator() as connection:
        connection.exec_driver_sql("insert into public.organizations (id, name) values ('alpha', 'Old [b]name[/x]')")
    added = command(*add, stdin=f"  {account.api_key}\n")
    assert (added.returncode, added.stdout) == (0, "Stored the credentials of 'alpha'; Cliniko accepts them.\n")
    assert added.stderr == ""
    stored = _stored(clinics)
    assert account.bare_key not in json.dumps(stored)
    assert clinics.vault.decrypt(stored["alpha"]).api_key == account.api_key

    listed = command("organizations", "list")
    assert "Old [b]name[/x]" in listed.stdout
    assert "New" not in listed.stdout
    assert f"{datetime.now(UTC):%Y-}" in listed.stdout

    assert command("organizations", "disable", "alpha").returncode == 0
    assert "disabled" in command("organizations", "list").stdout
    named = command("sync", "alpha")
    assert named.returncode == 1
    assert "organizations enable alpha" in named.stderr
    assert clinics.sandbox.counters.requests() == 1  # what adding asked
    assert command("organizations", "enable", "alpha").returncode == 0
    assert command("organizations", "validate", "alpha").stdout == "Cliniko accepts the credentials of 'alpha'.\n"
    assert clinics.sandbox.counters.requests() == 2

    with clinics.database.operator() as connection:
        connection.exec_driver_sql("insert into public.contacts (organization_id, name) values ('alpha', 'A contact')")
    for name in ("alpha", "beta"):
        with clinics.database.organization(name) as connection:
            connection.exec_driver_sql(
                "insert into cliniko.practitioners (organization_id, id, created_at, updated_at)"
                f" values ('{name}', '1', now(), now())"
            )
    refused = command("organizations", "remove", "alpha", stdin="n\n")
    assert refused.returncode == 130
    assert "alpha" in _stored(clinics)
    removed = command("organizations", "remove", "alpha", "--yes")
    assert (removed.returncode, removed.stdout) == (
        0,
        "Removed 'alpha': its credentials and 2 rows. Its contacts were not touched.\n",
    )
    assert not _stored(clinics)
    assert clinics.count("alpha", "cliniko.practitioners") == 0
    assert clinics.count("beta", "cliniko.practitioners") == 1
    with clinics.database.operator() as connection:
        assert connection.exec_driver_sql("select count(*) from public.contacts").scalar_one() == 1
    assert command("organizations", "remove", "alpha", "--yes").returncode == 1


@pytest.mark.parametrize(
    ("change", "options", "words"),
    [
        ("revoked", [], "401"),
        ("forbidden", [], "403"),
        (None, ["--api-url", "https://cliniko.example/v1"], "CLINIKO_ALLOWED_HOSTS"),
        (None, ["--api-url", "https://api.au2.cliniko.com.example/v1", "--no-validate"], "CLINIKO_ALLOWED_HOSTS"),
        ("no email", ["--api-url", "https://api.au2.cliniko.com/v1", "--no-validate"], "CLINIKO_CONTACT_EMAIL"),
        ("blank key", [], "no API key"),
        ("odd key", [], "copy it again"),
        ("no encryption key", [], "CREDENTIALS_ENCRYPTION_KEY"),
    ],
)
def test_credentials_that_do_not_work_are_not_stored(
    command: CommandLine, clinics, account, change, options, words
) -> None:
    account.revoked = change == "revoked"
    account.forbidden_resources = {"patients"} if change == "forbidden" else set()
    key = {"blank key": " \n", "odd key": "two words"}.get(change, account.api_key)
    options = options or ["--api-url", clinics.sandbox.base_url(account)]
    environ = {"CREDENTIALS_ENCRYPTION_KEY": None} if change == "no encryption key" else {}
    refused = command("organizations", "add", "alpha", "--name", "A", *options, stdin=key, **environ)
    assert refused.returncode == 1
    _assert_one_line(refused.stderr, words)
    assert account.bare_key not in refused.stderr + refused.stdout
    assert not _stored(clinics)
    with clinics.database.operator() as connection:
        assert connection.exec_driver_sql("select count(*) from public.organizations").scalar_one() == 0


@pytest.mark.parametrize(
    ("key", "given", "region", "api_url"),
    [
        ("MS0x-au4", None, "au4", "https://api.au4.cliniko.com/v1"),
        ("MS0x", None, "au1", "https://api.au1.cliniko.com/v1"),
        ("MS0x-au4", "https://api.uk1.cliniko.com/v1/", "uk1", "https://api.uk1.cliniko.com/v1"),
        ("MS0x-au4", "http://127.0.0.1:9/au2/v1/", "au4", "http://127.0.0.1:9/au2/v1"),
        ("MS0x-odd", "http://127.0.0.1:9/au2/v1", None, "http://127.0.0.1:9/au2/v1"),
    ],
)
def test_where_the_account_is_is_stored_for_other_programs_that_read_it(
    command: CommandLine, clinics, key, given, region, api_url
) -> None:
    added = command(
        *("organizations", "add", "alpha", "--name", "A", "--no-validate"),
        *(["--api-url", given] if given else []),
        stdin=key,
        CLINIKO_CONTACT_EMAIL="it@clinic.example",
        CLINIKO_ALLOWED_HOSTS="127.0.0.1:9",
    )
    assert added.returncode == 0, added.stderr
    assert clinics.vault.decrypt(_stored(clinics)["alpha"]) == ClinikoCredentials(key, region, api_url)


def test_a_cliniko_that_cannot_be_reached_is_told_in_one_line(command: CommandLine, clinics, account) -> None:
    port = free_port()
    refused = command(
        "organizations",
        *("add", "alpha", "--name", "A", "--api-url", f"http://127.0.0.1:{port}/au2/v1"),
        stdin=account.api_key,
        CLINIKO_ALLOWED_HOSTS=f"127.0.0.1:{port}",
    )
    assert refused.returncode == 1
    # Somebody waits for it: not as often as a sync tries.
    _assert_one_line(refused.stderr, "given up after 2 attempts")
    assert not _stored(clinics)


@pytest.mark.parametrize("odd", ["", "   ", "a\nb", "bell\a"])
def test_an_id_that_nobody_could_read_is_refused(command: CommandLine, clinics, odd) -> None:
    refused = command("organizations", "add", odd, "--name", "A", "--no-validate", stdin="key-au2")
    assert refused.returncode == 2
    assert "printable" in refused.stderr
    assert not _stored(clinics)


@pytest.mark.parametrize("odd", ["a, 'b' | \"c\" \\ 100%", "Zoë 🏄", "../x"])
def test_any_other_id_is_kept_as_it_is(command: CommandLine, clinics, account, odd) -> None:
    url = clinics.sandbox.base_url(account)
    added = command(
        "organizations", "add", odd, "--name", odd, "--no-validate", "--api-url", url, stdin=account.api_key
    )
    assert added.returncode == 0, added.stderr
    assert list(_stored(clinics)) == [odd]
    assert odd in command("organizations", "list").stdout


def test_rotation_rewrites_every_shape_and_tells_of_what_it_cannot_read(command: CommandLine, clinics) -> None:
    old, new = Fernet.generate_key(), Fernet.generate_key()
    plain = {"api_key": "a-key-au2", "region": "au2", "more": "kept"}

    def token(key: bytes) -> str:
        return Fernet(key).encrypt(json.dumps(plain).encode()).decode()

    def packed(text: str) -> str:
        return base64.b64encode(text.encode()).decode()

    shapes: dict[str, object] = {
        "object": {"encrypted_data": packed(token(old))},
        "object as text": json.dumps({"encrypted_data": packed(token(old))}),
        "base64": packed(token(old)),
        "token": token(old),
        "current": {"encrypted_data": packed(token(new))},
        "unreadable": {"encrypted_data": packed(token(Fernet.generate_key()))},
    }
    with clinics.database.operator() as connection:
        for name, shape in shapes.items():
            organizations.save(connection, name, name, {}, validated=False)
            connection.execute(
                sa.text(
                    "update public.api_credentials set credentials_encrypted = :value where organization_id = :name"
                ).bindparams(sa.bindparam("value", type_=JSONB)),
                {"value": shape, "name": name},
            )
    keys = f"{new.decode()},{old.decode()}"
    done = command("credentials", "rotate", CREDENTIALS_ENCRYPTION_KEY=keys)
    assert done.returncode == 1
    assert done.stdout == "Encrypted 4 anew; 1 already were under the first key.\n"
    _assert_one_line(done.stderr, "unreadable")
    stored = _stored(clinics)
    assert stored["unreadable"] == shapes["unreadable"]
    assert stored["current"] == shapes["current"]
    for name in set(shapes) - {"unreadable"}:
        assert Vault([new.decode()]).decrypt(stored[name]) == ClinikoCredentials("a-key-au2", "au2")
        assert "kept" in Fernet(new).decrypt(base64.b64decode(stored[name]["encrypted_data"])).decode()
    again = command("credentials", "rotate", CREDENTIALS_ENCRYPTION_KEY=new.decode())
    assert again.stdout == "Encrypted 0 anew; 5 already were under the first key.\n"


def test_the_embedded_database_needs_no_setting_at_all(command: CommandLine, clinics, account, home: Path) -> None:
    nothing = {"DATABASE_URL": None, "CREDENTIALS_ENCRYPTION_KEY": None}
    url = clinics.sandbox.base_url(account)
    added = command("organizations", "add", "alpha", "--name", "A", "--api-url", url, stdin=account.api_key, **nothing)
    assert added.returncode == 0, added.stderr
    key = home / "encryption.key"
    assert key.stat().st_mode & 0o777 == 0o600
    key.chmod(0o644)
    refused = command("organizations", "validate", "alpha", **nothing)
    assert refused.returncode == 1
    _assert_one_line(refused.stderr, "chmod 600")


def _stored(clinics: Clinics) -> dict[str, object]:
    with clinics.database.operator() as connection:
        return organizations.all_stored_credentials(connection)


def _assert_one_line(stderr: str, words: str) -> None:
    (line,) = stderr.splitlines()
    assert line.startswith("Error: ")
    assert words in line
    assert "Traceback" not in line
