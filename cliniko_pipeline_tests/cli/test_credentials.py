"""`cliniko-pipeline credentials rotate`: a new encryption key for all encrypted values."""

import pytest
from cryptography.fernet import Fernet

from cliniko_pipeline.credentials.vault import ClinikoCredentials, Vault
from cliniko_pipeline.orchestration.webhooks.posting import Destination
from cliniko_pipeline.postgres.operator_tables import organizations, webhook_deliveries, webhooks
from cliniko_pipeline_tests.support.clinics import Clinics
from cliniko_pipeline_tests.support.processes import CommandLine, assert_refused

OLD, NEW, LOST = (Fernet.generate_key().decode() for _ in range(3))


@pytest.fixture
def environ(environ: dict[str, str]) -> dict[str, str]:
    return environ | {"CREDENTIALS_ENCRYPTION_KEY": OLD}


def test_rotation_encrypts_all_that_is_stored(command: CommandLine, clinics: Clinics) -> None:
    """Values that cannot be decrypted are reported and kept."""
    clinics.open(["alpha", "current", "unreadable"])
    credentials = ClinikoCredentials("a-key-au2", "au2")
    given = {name: Vault([key]).encrypt(credentials) for name, key in (("current", NEW), ("unreadable", LOST))}
    with clinics.database.operator() as connection:
        for name, encrypted in given.items():
            organizations.replace_encrypted(connection, name, encrypted)
        alpha = clinics.vault.decrypt(organizations.all_stored_credentials(connection)["alpha"])
    secret = command("webhooks", "secrets", "create", "alpha").stdout.strip()
    url = "https://hooks.example.org/?token=target-token"
    signing = command("webhooks", "out", "set", "alpha", url).stdout.strip()

    done = command("credentials", "rotate", CREDENTIALS_ENCRYPTION_KEY=f"{NEW},{OLD}")
    assert done.stdout == "Re-encrypted 3; 1 were already under the first key.\n"
    assert_refused(done, "unreadable", stdout=done.stdout)
    vault = Vault([NEW])
    with clinics.database.operator() as connection:
        stored = organizations.all_stored_credentials(connection)
        (found,) = webhooks.webhook_secrets(connection, "alpha")
        target = webhook_deliveries.target(connection, "alpha")
        webhooks.replace_encrypted(connection, "cliniko.webhook_secrets", found.id, {"encrypted_data": "eA=="})
    assert {name: stored[name] for name in given} == given
    assert vault.decrypt(stored["alpha"]) == alpha
    assert vault.decrypt_text(found.encrypted) == secret
    assert target is not None
    assert Destination.from_text(vault.decrypt_text(target.encrypted)) == Destination(url, signing)

    again = command("credentials", "rotate", CREDENTIALS_ENCRYPTION_KEY=NEW)
    assert again.stdout == "Re-encrypted 0; 3 were already under the first key.\n"
    assert f"cliniko.webhook_secrets '{found.id}'" in again.stderr
