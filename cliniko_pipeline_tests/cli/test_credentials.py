"""`cliniko-pipeline credentials rotate`: a new encryption key for everything that is stored encrypted."""

import base64
import json

import pytest
import sqlalchemy as sa
from cryptography.fernet import Fernet
from sqlalchemy.dialects.postgresql import JSONB

from cliniko_pipeline.credentials.vault import ClinikoCredentials, Vault
from cliniko_pipeline.orchestration.webhook_sending import Destination
from cliniko_pipeline.postgres import organizations, webhook_deliveries, webhooks
from cliniko_pipeline_tests.support.clinics import Clinics
from cliniko_pipeline_tests.support.processes import CommandLine, assert_refused

OLD, NEW = Fernet.generate_key().decode(), Fernet.generate_key().decode()


@pytest.fixture
def environ(environ: dict[str, str]) -> dict[str, str]:
    return environ | {"CREDENTIALS_ENCRYPTION_KEY": OLD}


def test_rotation_encrypts_every_stored_form(command: CommandLine, clinics: Clinics) -> None:
    """What it cannot decrypt is named, and left as it is."""
    shapes: dict[str, object] = {
        "object": {"encrypted_data": _base64(_encrypted(OLD))},
        "object as text": json.dumps({"encrypted_data": _base64(_encrypted(OLD))}),
        "base64": _base64(_encrypted(OLD)),
        "token": _encrypted(OLD),
        "current": {"encrypted_data": _base64(_encrypted(NEW))},
        "unreadable": {"encrypted_data": _base64(_encrypted(Fernet.generate_key().decode()))},
    }
    update = sa.text("update public.api_credentials set credentials_encrypted = :value where organization_id = :name")
    with clinics.database.operator() as connection:
        for name, shape in shapes.items():
            organizations.save(connection, name, name, {}, validated=False)
            connection.execute(update.bindparams(sa.bindparam("value", type_=JSONB)), {"value": shape, "name": name})
    done = command("credentials", "rotate", CREDENTIALS_ENCRYPTION_KEY=f"{NEW},{OLD}")
    assert done.stdout == "Encrypted 4 anew; 1 already were under the first key.\n"
    assert_refused(done, "unreadable", stdout=done.stdout)
    with clinics.database.operator() as connection:
        stored = organizations.all_stored_credentials(connection)
    assert stored["unreadable"] == shapes["unreadable"]
    assert stored["current"] == shapes["current"]
    for name in set(shapes) - {"unreadable"}:
        assert Vault([NEW]).decrypt(stored[name]) == ClinikoCredentials("a-key-au2", "au2")
        assert "kept" in Fernet(NEW).decrypt(base64.b64decode(stored[name]["encrypted_data"])).decode()
    again = command("credentials", "rotate", CREDENTIALS_ENCRYPTION_KEY=NEW)
    assert again.stdout == "Encrypted 0 anew; 5 already were under the first key.\n"


def test_rotation_includes_webhook_secrets_and_targets(command: CommandLine, clinics: Clinics) -> None:
    clinics.open(["alpha"])
    secret = command("webhooks", "secrets", "create", "alpha").stdout.strip()
    url = "https://hooks.example.org/?token=target-token"
    signing = command("webhooks", "out", "set", "alpha", url).stdout.strip()
    rotated = command("credentials", "rotate", CREDENTIALS_ENCRYPTION_KEY=f"{NEW},{OLD}")
    assert rotated.stdout == "Encrypted 3 anew; 0 already were under the first key.\n", rotated.stderr
    vault = Vault([NEW])
    with clinics.database.operator() as connection:
        (found,) = webhooks.webhook_secrets(connection, "alpha")
        target = webhook_deliveries.target(connection, "alpha")
        webhooks.replace_encrypted(connection, "cliniko.webhook_secrets", found.id, {"encrypted_data": "eA=="})
    assert target is not None
    assert vault.decrypt_text(found.encrypted) == secret
    assert Destination.from_text(vault.decrypt_text(target.encrypted)) == Destination(url, signing)
    broken = command("credentials", "rotate", CREDENTIALS_ENCRYPTION_KEY=NEW)
    assert broken.returncode == 1
    assert f"cliniko.webhook_secrets '{found.id}'" in broken.stderr


def _encrypted(key: str) -> str:
    plain = {"api_key": "a-key-au2", "region": "au2", "more": "kept"}
    return Fernet(key).encrypt(json.dumps(plain).encode()).decode()


def _base64(text: str) -> str:
    return base64.b64encode(text.encode()).decode()
