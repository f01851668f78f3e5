"""`cliniko-pipeline organizations`: organizations, credentials and schedules."""

import json
from datetime import UTC, datetime
from pathlib import Path

import pytest

from cliniko_pipeline.credentials.vault import ClinikoCredentials
from cliniko_pipeline.postgres.operator_tables import organizations
from cliniko_pipeline.sandbox.accounts.account import Account
from cliniko_pipeline_tests.support.clinics import Clinics, small_clinic
from cliniko_pipeline_tests.support.environments import free_port
from cliniko_pipeline_tests.support.processes import CommandLine, assert_refused
from cliniko_pipeline_tests.support.sync_processes import home_with_files, sync_in_a_fork


@pytest.fixture
def account(clinics: Clinics) -> Account:
    account = small_clinic("alpha")
    clinics.sandbox.add(account)
    return account


def test_organization_is_added_disabled_and_enabled(
    command: CommandLine, clinics: Clinics, account: Account, home: Path
) -> None:
    """The name that the application has stored is kept, and the key is checked against Cliniko."""
    home_with_files(home)
    add = ["organizations", "add", "alpha", "--name", "New [i]name[/i]", "--api-url", clinics.sandbox.base_url(account)]
    with clinics.database.operator() as connection:
        connection.exec_driver_sql("insert into public.organizations (id, name) values ('alpha', 'Old [b]name[/x]')")
    added = command(*add, stdin=f"  {account.api_key}\n")
    first, second = added.stdout.splitlines()
    assert (added.returncode, added.stderr) == (0, "")
    assert first == "Stored the credentials of 'alpha'; Cliniko accepts them."
    assert "use UTC, because no time zone is known" in second
    stored = _stored(clinics)
    assert account.bare_key not in json.dumps(stored)
    assert clinics.vault.decrypt(stored["alpha"]).api_key == account.api_key

    listed = command("organizations", "list")
    assert "Old [b]name[/x]" in listed.stdout
    assert "New" not in listed.stdout
    assert f"{datetime.now(UTC):%Y-}" in listed.stdout

    assert command("organizations", "disable", "alpha").returncode == 0
    assert "disabled" in command("organizations", "list").stdout
    named = sync_in_a_fork(command.environ, "alpha")
    assert "organizations enable alpha" in (named.error or "")
    asked = clinics.sandbox.counters.requests()
    assert asked == 3  # One request checks the key, and two look for the time zone.
    assert command("organizations", "enable", "alpha").returncode == 0
    assert (
        command("organizations", "validate", "alpha").stdout
        == f"Cliniko accepts the credentials of 'alpha'.\n{second}\n"
    )
    assert clinics.sandbox.counters.requests() == 2 * asked


def test_time_zone_is_taken_from_cliniko_once(command: CommandLine, clinics: Clinics, account: Account) -> None:
    """A time zone that was set is kept. A full sync time that was set without a time zone stays in UTC."""
    url = clinics.sandbox.base_url(account)
    for settings, zone in [({"account": {"time_zone": "Sydney"}}, "Australia/Sydney"), (None, "Australia/Sydney")]:
        account.settings = settings
        added = command("organizations", "add", "alpha", "--name", "A", "--api-url", url, stdin=account.api_key)
        assert added.stdout.splitlines()[1:] == [f"Nightly full syncs use the time zone {zone}."]
    assert "default (Australia/Sydney)" in command("organizations", "list").stdout
    account.settings = {"account": {"time_zone": "Perth"}}
    for given, shown in {"London": "Europe/London", "UTC": "UTC"}.items():
        assert command("organizations", "schedule", "alpha", "--time-zone", given).returncode == 0
        assert f"the time zone {shown}." in command("organizations", "validate", "alpha").stdout
    assert command("organizations", "schedule", "alpha", "--default").returncode == 0
    assert "default (UTC)" in command("organizations", "list").stdout

    clinics.open(["beta"])
    assert command("organizations", "schedule", "beta", "--full-at", "16:00").returncode == 0
    clinics.sandbox.accounts["beta"].settings = {"account": {"time_zone": "Sydney"}}
    assert "use UTC" in command("organizations", "validate", "beta").stdout
    assert "full at 16:00 (UTC)" in command("organizations", "list").stdout


def test_unknown_time_zone_is_refused(command: CommandLine, clinics: Clinics) -> None:
    clinics.open(["alpha"])
    refused = command("organizations", "schedule", "alpha", "--every", "5", "--time-zone", "Mars/Olympus_Mons")
    assert refused.returncode == 2
    assert "not an IANA time zone such as Australia/Sydney" in refused.stderr
    assert clinics.rows("select * from cliniko.scheduling") == []


def test_organization_is_removed_after_confirmation(command: CommandLine, clinics: Clinics) -> None:
    clinics.open(["alpha", "beta"])
    assert command("organizations", "remove", "alpha", stdin="n\n").returncode == 130
    assert set(_stored(clinics)) == {"alpha", "beta"}
    removed = command("organizations", "remove", "alpha", "--yes")
    said = "Removed 'alpha': its credentials and 0 rows. Its contacts were not touched.\n"
    assert (removed.returncode, removed.stdout) == (0, said)
    assert set(_stored(clinics)) == {"beta"}
    assert clinics.rows("select count(*) from public.contacts") == [(2,)]
    assert command("organizations", "remove", "alpha", "--yes").returncode == 1


def test_unusable_credentials_are_not_stored(command: CommandLine, clinics: Clinics, account: Account) -> None:
    add = ("organizations", "add", "alpha", "--name", "A")
    url = ("--api-url", clinics.sandbox.base_url(account))
    abroad = ("--api-url", "https://api.au2.cliniko.com.example/v1", "--no-validate")
    without_email = ("--api-url", "https://api.au2.cliniko.com/v1", "--no-validate")
    closed = free_port()
    nowhere = ("--api-url", f"http://127.0.0.1:{closed}/au2/v1")
    cases = [
        (account.api_key, abroad, "CLINIKO_ALLOWED_HOSTS", {}),
        (account.api_key, without_email, "CLINIKO_CONTACT_EMAIL", {}),
        # There are fewer attempts than in a sync, because a person is waiting.
        (account.api_key, nowhere, "given up after 2 attempts", {"CLINIKO_ALLOWED_HOSTS": f"127.0.0.1:{closed}"}),
        (" \n", url, "no API key", {}),
        ("two words", url, "copy the complete key", {}),
        (account.api_key, url, "CREDENTIALS_ENCRYPTION_KEY", {"CREDENTIALS_ENCRYPTION_KEY": None}),
    ]
    for key, options, words, changes in cases:
        refused = command(*add, *options, stdin=key, **changes)
        assert_refused(refused, words)
        assert account.bare_key not in refused.stderr
    account.forbidden_resources = {"patients"}
    assert_refused(command(*add, *url, stdin=account.api_key), "403")
    account.revoked = True
    refused = command(*add, *url, stdin=account.api_key)
    assert_refused(refused, "401")
    assert account.bare_key not in refused.stderr
    assert not _stored(clinics)
    assert clinics.rows("select id from public.organizations") == []


def test_account_address_is_stored_for_other_programs(command: CommandLine, clinics: Clinics) -> None:
    cases = [
        ("MS0x-au4", None, "au4", "https://api.au4.cliniko.com/v1"),
        ("MS0x-au4", "https://api.uk1.cliniko.com/v1/", "uk1", "https://api.uk1.cliniko.com/v1"),
        ("MS0x-odd", "http://127.0.0.1:9/au2/v1", None, "http://127.0.0.1:9/au2/v1"),
    ]
    for key, given, region, api_url in cases:
        added = command(
            *("organizations", "add", "alpha", "--name", "A", "--no-validate"),
            *(["--api-url", given] if given else []),
            stdin=key,
            CLINIKO_CONTACT_EMAIL="it@clinic.example",
            CLINIKO_ALLOWED_HOSTS="127.0.0.1:9",
        )
        assert added.returncode == 0, added.stderr
        assert clinics.vault.decrypt(_stored(clinics)["alpha"]) == ClinikoCredentials(key, region, api_url)


def test_organization_id_must_be_printable(command: CommandLine, clinics: Clinics, account: Account) -> None:
    """Any printable id is stored and shown unchanged."""
    for odd in ("", "   ", "a\nb", "bell\a"):
        refused = command("organizations", "add", odd, "--name", "A", "--no-validate", stdin="key-au2")
        assert refused.returncode == 2
        assert "printable" in refused.stderr
    assert not _stored(clinics)
    url = clinics.sandbox.base_url(account)
    odd_ids = ["../x", "Zoë 🏄", "a, 'b' | \"c\" \\ 100%"]
    for odd in odd_ids:
        arguments = ("add", odd, "--name", odd, "--no-validate", "--api-url", url)
        added = command("organizations", *arguments, stdin=account.api_key)
        assert added.returncode == 0, added.stderr
    assert sorted(_stored(clinics)) == sorted(odd_ids)
    listed = command("organizations", "list").stdout
    assert all(odd in listed for odd in odd_ids)


def test_embedded_database_needs_no_settings(
    command: CommandLine, clinics: Clinics, account: Account, home: Path
) -> None:
    """The encryption key is generated, and only its owner may read it."""
    nothing = {"DATABASE_URL": None, "CREDENTIALS_ENCRYPTION_KEY": None}
    url = clinics.sandbox.base_url(account)
    added = command("organizations", "add", "alpha", "--name", "A", "--api-url", url, stdin=account.api_key, **nothing)
    assert added.returncode == 0, added.stderr
    key = home / "encryption.key"
    assert key.stat().st_mode & 0o777 == 0o600
    key.chmod(0o644)
    assert_refused(command("organizations", "validate", "alpha", **nothing), "chmod 600")


def _stored(clinics: Clinics) -> dict[str, object]:
    with clinics.database.operator() as connection:
        return organizations.all_stored_credentials(connection)
