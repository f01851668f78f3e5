"""The errors of this package, grouped by what the caller can do about them.

    ClinikoPipelineError
    ├── ConfigurationError             settings or set-up are wrong: correct them, then try again
    │   ├── SettingsError              an environment variable
    │   ├── ArgumentError              an argument of a command, a request or a run
    │   ├── DatabaseSetupError         the wrong database system, a missing table, privilege or migration
    │   │   └── NoOrganizationsError   no organization is visible, though some were before
    │   ├── DatabaseCopyError          a copy of the database that the pipeline was set up in: it sends nothing
    │   ├── ClockSkewError             this machine's or Cliniko's clock is too far from the database's
    │   └── OrganizationUnknownError   the organization does not exist or has no active credentials
    ├── CredentialsError               an organization needs other credentials
    │   ├── CredentialsDecryptionError no encryption key decrypts the stored credentials
    │   ├── CredentialsFormatError     the value is not a Cliniko credential
    │   ├── AuthenticationError        Cliniko does not know the API key (401)
    │   └── PermissionDeniedError      the API key's user lacks a right (403)
    ├── TransientError                 try again later: nothing has to be changed
    │   ├── ClinikoUnavailableError    time-outs, resets, 5xx or unreadable bodies in every attempt
    │   ├── RateLimitedError           429 after every wait that Cliniko asked for
    │   └── DatabaseUnavailableError   PostgreSQL is down, or the connection was lost
    └── DataError                      a retry gives the same result: look at the data
        ├── RequestRejectedError       Cliniko refuses the request (400, 404, 422, ...)
        │   └── FieldRefusedError      Cliniko refuses to sort or filter a list by a field
        ├── LostMatchesError           suspiciously many patients would lose their contact
        ├── UnexpectedResponseError    a well-formed answer that breaks the API's promise
        └── ForeignLinkError           a link or redirect to another host: it is not followed

A message is one line: what happened, and what to do next. It never holds a secret, a patient's data, a response body
or the query of a URL.
"""

from typing import Literal, TypeVar


class ClinikoPipelineError(Exception):
    """The root of all errors that this package raises on purpose."""

    permanent: bool = True
    """Whether a retry without any change is pointless."""


class ConfigurationError(ClinikoPipelineError):
    """Settings or set-up are wrong."""


class SettingsError(ConfigurationError):
    """An environment variable is missing or has an unusable value."""


class ArgumentError(ConfigurationError):
    """An argument of a command, a request or a run cannot be used."""


class DatabaseSetupError(ConfigurationError):
    """The database is not what the pipeline needs: system, version, table, privilege or migration."""


class NoOrganizationsError(DatabaseSetupError):
    """No organization is visible, though some were before: a policy hides them, or their rows are gone."""


class DatabaseCopyError(ConfigurationError):
    """The database is a copy of the one that the pipeline was set up in: it sends no requests."""


class ClockSkewError(ConfigurationError):
    """Two clocks differ by more than is allowed: nothing is written by a time that may be wrong."""


class OrganizationUnknownError(ConfigurationError):
    """The organization does not exist or has no active Cliniko credentials."""


class CredentialsError(ClinikoPipelineError):
    """An organization's credentials do not work; it needs others."""


class CredentialsDecryptionError(CredentialsError):
    """No configured encryption key decrypts the stored credentials."""


class CredentialsFormatError(CredentialsError):
    """A stored or given value is not a Cliniko credential."""


class AuthenticationError(CredentialsError):
    """Cliniko does not know the API key (HTTP 401)."""


class PermissionDeniedError(CredentialsError):
    """The API key's user lacks a right (HTTP 403)."""


class TransientError(ClinikoPipelineError):
    """The cause passes: a later attempt can succeed without any change."""

    permanent = False


class ClinikoUnavailableError(TransientError):
    """Cliniko could not be reached or gave no readable answer in any attempt."""


class RateLimitedError(TransientError):
    """Cliniko answers 429 after every wait that it asked for."""


class DatabaseUnavailableError(TransientError):
    """PostgreSQL cannot be reached, or the connection was lost."""


class DataError(ClinikoPipelineError):
    """An answer or a value that a retry does not change."""


class RequestRejectedError(DataError):
    """Cliniko refuses the request (HTTP 400, 404, 422 and other 4xx)."""


class FieldRefusedError(RequestRejectedError):
    """Cliniko refuses to sort or filter a list by a field (HTTP 400 that names it)."""

    use: Literal["sort", "filter"] = "filter"
    field: str = ""


class LostMatchesError(DataError):
    """Suspiciously many patients would lose their contact; nothing was written."""


class UnexpectedResponseError(DataError):
    """Cliniko's answer is well-formed but breaks the promise of its API."""


class ForeignLinkError(DataError):
    """A link or redirect leads to another host. It is not followed, because it would leak the credentials."""


_Error = TypeVar("_Error", bound=ClinikoPipelineError)


def in_organization(organization_id: str, error: _Error) -> _Error:
    """Return the error with its organization named in the message."""
    return type(error)(f"Organization '{organization_id}': {error}")
