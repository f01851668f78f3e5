"""Tests of the encryption key file of the embedded database."""

import base64
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from cryptography.fernet import Fernet

from cliniko_pipeline.errors import SettingsError
from cliniko_pipeline.settings import KEY_COMMAND, load_settings

KEY = base64.urlsafe_b64encode(bytes(range(32))).decode()
OTHER_KEY = base64.urlsafe_b64encode(bytes(range(32, 64))).decode()


def secrets_of(keys) -> list[str]:
    return [key.get_secret_value() for key in keys]


@pytest.fixture
def embedded(tmp_path):
    return load_settings({"CLINIKO_PIPELINE_HOME": str(tmp_path / "state")})


@pytest.fixture
def key_file(embedded):
    return embedded.home / "encryption.key"


def test_key_setting_is_used_without_a_key_file(embedded):
    settings = load_settings({"CREDENTIALS_ENCRYPTION_KEY": KEY, "CLINIKO_PIPELINE_HOME": str(embedded.home)})
    assert secrets_of(settings.ensure_encryption_keys()) == [KEY]
    assert not embedded.home.exists()


def test_missing_key_with_a_database_url_is_an_error_with_remedy(embedded):
    settings = load_settings({"DATABASE_URL": "postgresql://h/db", "CLINIKO_PIPELINE_HOME": str(embedded.home)})
    with pytest.raises(SettingsError, match="CREDENTIALS_ENCRYPTION_KEY is not set") as caught:
        settings.ensure_encryption_keys()
    assert KEY_COMMAND in str(caught.value)
    assert not embedded.home.exists()


def test_key_command_of_the_error_makes_a_key():
    python, flag, program = KEY_COMMAND.split(" ", 2)
    assert (python, flag, program[0], program[-1]) == ("python", "-c", "'", "'")
    made = subprocess.run([sys.executable, "-c", program[1:-1]], capture_output=True, text=True, check=True).stdout
    assert load_settings({"CREDENTIALS_ENCRYPTION_KEY": made}).encryption_keys


def test_embedded_database_gets_one_private_key(embedded, key_file):
    previous = os.umask(0)
    try:
        with ThreadPoolExecutor(8) as pool:
            made = list(pool.map(lambda _: secrets_of(embedded.ensure_encryption_keys()), range(8)))
    finally:
        os.umask(previous)
    Fernet(made[0][0])
    assert made == [made[0]] * 8
    assert key_file.stat().st_mode & 0o777 == 0o600
    assert list(embedded.home.iterdir()) == [key_file]


def test_key_file_is_read_in_a_read_only_home(embedded, key_file, monkeypatch):
    """The file may have old keys after the new key."""
    made = secrets_of(embedded.ensure_encryption_keys())

    def refuse(*_, **__):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr("tempfile.mkstemp", refuse)
    assert secrets_of(embedded.ensure_encryption_keys()) == made
    key_file.write_text(f"{KEY},\n{OTHER_KEY}\n")
    assert secrets_of(embedded.ensure_encryption_keys()) == [KEY, OTHER_KEY]


def test_key_made_by_another_process_first_is_used(embedded, key_file, monkeypatch):
    def lose_the_race(self, target):
        key_file.write_text(KEY)
        key_file.chmod(0o600)
        os.link(target, self)

    monkeypatch.setattr(Path, "hardlink_to", lose_the_race)
    assert secrets_of(embedded.ensure_encryption_keys()) == [KEY]
    assert list(embedded.home.iterdir()) == [key_file]


@pytest.mark.parametrize("mode", [0o640, 0o604])
def test_key_file_open_to_others_is_refused_with_remedy(embedded, key_file, mode):
    (key,) = secrets_of(embedded.ensure_encryption_keys())
    key_file.chmod(mode)
    with pytest.raises(SettingsError, match=f"mode {mode:04o}.*chmod 600") as caught:
        embedded.ensure_encryption_keys()
    assert key not in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"nonsense", b"\xff\xfe"])
def test_key_file_without_a_key_is_refused_unchanged(embedded, key_file, content):
    embedded.ensure_encryption_keys()
    key_file.write_bytes(content)
    with pytest.raises(SettingsError, match=r"The encryption key file .*encryption\.key"):
        embedded.ensure_encryption_keys()
    assert key_file.read_bytes() == content


def test_unusable_home_is_a_settings_error(embedded):
    embedded.home.write_text("a file where the directory should be")
    with pytest.raises(SettingsError, match="cannot be used"):
        embedded.ensure_encryption_keys()


def test_file_system_without_links_is_an_error_with_remedy(embedded, monkeypatch):
    def refuse(self, target):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(Path, "hardlink_to", refuse)
    with pytest.raises(SettingsError, match=r"Operation not permitted.*set CREDENTIALS_ENCRYPTION_KEY"):
        embedded.ensure_encryption_keys()
    assert list(embedded.home.iterdir()) == []
