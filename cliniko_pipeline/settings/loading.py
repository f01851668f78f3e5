"""The reading of settings from the environment, and values that depend on several settings."""

import os
from collections.abc import Mapping
from datetime import timedelta
from urllib.parse import urlsplit

from pydantic import SecretStr, ValidationError

from cliniko_pipeline.errors import SettingsError
from cliniko_pipeline.hosts import is_loopback
from cliniko_pipeline.settings import fields, key_file
from cliniko_pipeline.settings.validators import KEY_COMMAND

_LOOPBACK_CONTACT_EMAIL = "nobody@example.org"
"""The contact address for a simulated Cliniko on this machine."""


def load_settings(environ: Mapping[str, str] | None = None) -> "Settings":
    """Read the settings from `environ`, or from the process's environment.

    A blank value is treated as unset. Raises SettingsError with all problems in one line.
    """
    environ = os.environ if environ is None else environ
    try:
        return Settings.model_validate({name: value for name, value in environ.items() if value.strip()})
    except ValidationError as error:
        problems = _problems(error)
    # Raised after the `except` block, because pydantic's error contains the values, and would become the context.
    raise SettingsError(" ".join(problems))


# The bases are in reverse order, because pydantic collects the fields of the last base first.
class Settings(
    fields.ApiSettings,
    fields.UiSettings,
    fields.RetentionSettings,
    fields.AlertSettings,
    fields.SafeguardSettings,
    fields.ScheduleSettings,
    fields.RuleSettings,
    fields.ClinikoSettings,
    fields.StorageSettings,
):
    """All settings of one process, validated. Made by `load_settings`."""

    @property
    def fresh_within(self) -> timedelta:
        """The greatest age at which `active_patients` is fresh."""
        return timedelta(minutes=self.fresh_within_minutes)

    @property
    def embedded_database(self) -> bool:
        """Whether the pipeline runs its own PostgreSQL under `home`."""
        return self.database_url is None

    def user_agent_for(self, api_url: str) -> str:
        """Return the User-Agent of requests to `api_url`. A loopback host needs no contact address.

        Raises SettingsError if the address is required and not set.
        """
        email = self.contact_email
        if email is None and _is_on_this_machine(api_url):
            email = _LOOPBACK_CONTACT_EMAIL
        if email is None:
            raise SettingsError(
                "CLINIKO_CONTACT_EMAIL is not set, and Cliniko may block requests without a contact address; set it"
                " to an e-mail address that someone reads."
            )
        return f"cliniko_pipeline ({email})"

    def ensure_encryption_keys(self) -> tuple[SecretStr, ...]:
        """Return at least one encryption key; generate it for a new embedded database.

        The generated key is in the file `home/encryption.key` with mode 0600. Like the variable, the file may contain
        several keys. Raises SettingsError if a key is missing with DATABASE_URL, or if the file cannot be used.
        """
        if self.encryption_keys:
            return self.encryption_keys
        if not self.embedded_database:
            raise SettingsError(
                "CREDENTIALS_ENCRYPTION_KEY is not set, and is required with DATABASE_URL; set it to the key that"
                f" encrypted the stored credentials. Where there are none yet, generate a key with `{KEY_COMMAND}`."
            )
        return key_file.ensure_keys(self.home / "encryption.key")


def _problems(error: ValidationError) -> list[str]:
    values = {variable.name: variable.values for group in fields.GROUPS for variable in fields.variables(group)}
    problems: list[str] = []
    for detail in error.errors(include_input=False, include_url=False):
        # Skip a default that depends on an invalid field, because that field is reported already.
        if detail["type"] == "default_factory_not_called":
            continue
        name = str(detail["loc"][0])
        raised = detail.get("ctx", {}).get("error")
        problems.append(f"{name} {raised or f'must be {values[name]}.'}")
    return problems


def _is_on_this_machine(api_url: str) -> bool:
    try:
        return is_loopback(urlsplit(api_url).hostname or "")
    except ValueError:
        return False
