"""Every error this package raises, by what whoever meets it can do about it.

    ClinikoPipelineError
    ├── ConfigurationError             settings or set-up are wrong: fix them, then run again
    │   ├── SettingsError              an environment variable
    │   ├── ArgumentError              what a command or a launch was told
    │   ├── DatabaseSetupError         the wrong database system, a missing table, privilege or migration
    │   │   └── NoOrganizationsError   no organization is found, where there were some
    │   ├── DatabaseCopyError          a copy of the database that the pipeline was set up in, which sends nothing
    │   ├── ClockSkewError             this machine's clock or Cliniko's differs too much from the database's
    │   └── OrganizationUnknownError   no such organization, or none with Cliniko credentials
    ├── CredentialsError               permanent until an organization's credentials change
    │   ├── CredentialsDecryptionError the encryption key does not open what is stored
    │   ├── CredentialsFormatError     what is stored or given is not a Cliniko credential
    │   ├── AuthenticationError        Cliniko knows no such API key (401)
    │   └── PermissionDeniedError      the API key's user lacks a right (403)
    ├── TransientError                 worth another try later, nothing to fix here
    │   ├── ClinikoUnavailableError    time-outs, resets, 5xx, unreadable bodies, after all attempts
    │   ├── RateLimitedError           still 429 after waiting as often as is reasonable
    │   └── DatabaseUnavailableError   PostgreSQL is down, or the connection broke
    └── DataError                      an answer or a value that no retry will mend
        ├── RequestRejectedError       Cliniko refuses the request itself (400, 404, 422, ...)
        │   └── FieldRefusedError      Cliniko refuses to sort or filter a list by a field
        ├── LostMatchesError           more matches of patients and contacts would be lost than is believed
        ├── UnexpectedResponseError    a well-formed answer that is not what the API promises
        └── ForeignLinkError           a link or redirect to another host; not followed

Messages say what happened and what to do next, in one line. They never hold a secret, a patient's data, a
response body or a URL's query.
"""

from typing import Literal, TypeVar


class ClinikoPipelineError(Exception):
    """The root: catching it catches everything this package raises on purpose."""

    permanent: bool = True
    """Whether trying again without changing anything is pointless."""


class ConfigurationError(ClinikoPipelineError):
    """Settings or set-up are wrong."""


class SettingsError(ConfigurationError):
    """An environment variable has a value that cannot be used, or none."""


class ArgumentError(ConfigurationError):
    """A command or a launch was told something that cannot be used."""


class DatabaseSetupError(ConfigurationError):
    """The database is not what the pipeline needs: system, version, table, privilege or migration."""


class NoOrganizationsError(DatabaseSetupError):
    """No organization is found, though there were some: hidden by a policy, or their rows are gone."""


class DatabaseCopyError(ConfigurationError):
    """The database is a copy of the one that the pipeline was set up in; nothing is sent from it."""


class ClockSkewError(ConfigurationError):
    """Two clocks differ by more than allowed; nothing is written by a time that may be wrong."""


class OrganizationUnknownError(ConfigurationError):
    """The organization does not exist, or has no active Cliniko credentials."""


class CredentialsError(ClinikoPipelineError):
    """An organization's credentials do not work; nothing helps but other credentials."""


class CredentialsDecryptionError(CredentialsError):
    """No configured encryption key opens the stored credentials."""


class CredentialsFormatError(CredentialsError):
    """What is stored or given is not a Cliniko credential."""


class AuthenticationError(CredentialsError):
    """Cliniko knows no such API key (HTTP 401)."""


class PermissionDeniedError(CredentialsError):
    """The user the API key belongs to lacks a right (HTTP 403)."""


class TransientError(ClinikoPipelineError):
    """Worth another try later."""

    permanent = False


class ClinikoUnavailableError(TransientError):
    """Cliniko could not be reached, or gave no readable answer, in as many attempts as allowed."""


class RateLimitedError(TransientError):
    """Cliniko still answers 429 after the waits it asked for."""


class DatabaseUnavailableError(TransientError):
    """PostgreSQL cannot be reached, or the connection broke."""


class DataError(ClinikoPipelineError):
    """An answer or a value that no retry will mend."""


class RequestRejectedError(DataError):
    """Cliniko refuses the request itself (HTTP 400, 404, 422 and other 4xx)."""


class FieldRefusedError(RequestRejectedError):
    """Cliniko refuses to sort or filter a list by a field (HTTP 400 that names it)."""

    use: Literal["sort", "filter"] = "filter"
    field: str = ""


class LostMatchesError(DataError):
    """More matches of patients and contacts would be lost than is believed; nothing was written."""


class UnexpectedResponseError(DataError):
    """Cliniko's answer is well-formed but not what its API promises."""


class ForeignLinkError(DataError):
    """A link or redirect leads to another host; it was not followed, so that no credentials leave."""


_E = TypeVar("_E", bound=ClinikoPipelineError)


def in_organization(organization_id: str, error: _E) -> _E:
    """The same error, saying whose it is; for errors raised where the organization is not known."""
    return type(error)(f"Organization '{organization_id}': {error}")
