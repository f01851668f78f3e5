"""The errors of this package, grouped by what the caller can do about them.

    ClinikoPipelineError
    ├── ConfigurationError             settings or set-up are wrong: correct them, then try again
    │   ├── SettingsError              an environment variable
    │   ├── ArgumentError              an argument of a command, a request or a run
    │   ├── DatabaseSetupError         the wrong database system, a missing table, privilege or migration
    │   │   └── NoOrganizationsError   organizations that were visible before are not visible any more
    │   ├── DatabaseCopyError          the database is a copy of the original one, so no requests are sent
    │   ├── ClockSkewError             this machine's or Cliniko's clock is too far from the database's
    │   └── OrganizationUnknownError   the organization does not exist or has no active credentials
    ├── CredentialsError               the organization's credentials do not work: replace them
    │   ├── CredentialsDecryptionError no encryption key decrypts the stored credentials
    │   ├── CredentialsFormatError     the value is not a Cliniko credential
    │   ├── AuthenticationError        Cliniko does not know the API key (401)
    │   └── PermissionDeniedError      the API key's user lacks a right (403)
    ├── TransientError                 the cause is temporary: try again later without any change
    │   ├── ClinikoUnavailableError    time-outs, resets, 5xx or unreadable bodies in every attempt
    │   ├── RateLimitedError           429 even after every wait that Cliniko asked for
    │   └── DatabaseUnavailableError   PostgreSQL is down, or the connection was lost
    └── DataError                      a retry gives the same result: look at the data
        ├── RequestRejectedError       Cliniko refuses the request (400, 404, 422, ...)
        │   └── FieldRefusedError      Cliniko refuses to sort or filter a list by a field
        ├── LostMatchesError           suspiciously many patients would lose their contact
        ├── UnexpectedResponseError    a well-formed response that differs from the API's documentation
        └── ForeignLinkError           a link or redirect to another host: it is not followed

A message is one line that says what happened and what to do next. It never contains a secret, a patient's data, a
response body or the query of a URL.
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
    """The database does not meet a requirement, such as a version, privilege or migration."""


class NoOrganizationsError(DatabaseSetupError):
    """No organization is visible any more, because a policy hides them or their rows are gone."""


class DatabaseCopyError(ConfigurationError):
    """The database is a copy of the original one, so the pipeline sends no requests."""


class ClockSkewError(ConfigurationError):
    """Two clocks differ by more than is allowed, so that times in the database might be wrong."""


class OrganizationUnknownError(ConfigurationError):
    """The organization does not exist or has no active Cliniko credentials."""


class CredentialsError(ClinikoPipelineError):
    """The organization's credentials do not work and must be replaced."""


class CredentialsDecryptionError(CredentialsError):
    """No configured encryption key decrypts the stored credentials."""


class CredentialsFormatError(CredentialsError):
    """A stored or given value is not a Cliniko credential."""


class AuthenticationError(CredentialsError):
    """Cliniko does not know the API key (HTTP 401)."""


class PermissionDeniedError(CredentialsError):
    """The API key's user lacks a right (HTTP 403)."""


class TransientError(ClinikoPipelineError):
    """The cause is temporary, so that a later attempt can succeed without any change."""

    permanent = False


class ClinikoUnavailableError(TransientError):
    """Cliniko could not be reached or gave no readable response in any attempt."""


class RateLimitedError(TransientError):
    """Cliniko responds with 429 even after every wait that it asked for."""


class DatabaseUnavailableError(TransientError):
    """PostgreSQL cannot be reached, or the connection was lost."""


class DataError(ClinikoPipelineError):
    """A response or a value that a retry would not change."""


class RequestRejectedError(DataError):
    """Cliniko refuses the request (HTTP 400, 404, 422 and other 4xx)."""


class FieldRefusedError(RequestRejectedError):
    """Cliniko refuses to sort or filter a list by a field (HTTP 400 or 422)."""

    use: Literal["sort", "filter"] = "filter"
    field: str = ""


class LostMatchesError(DataError):
    """Suspiciously many patients would lose their contact; nothing was written."""


class UnexpectedResponseError(DataError):
    """Cliniko's response is well-formed but differs from the API's documentation."""


class ForeignLinkError(DataError):
    """A link or redirect to another host is not followed, to protect the credentials."""


_Error = TypeVar("_Error", bound=ClinikoPipelineError)


def in_organization(organization_id: str, error: _Error) -> _Error:
    """Return the error with the organization's id at the start of its message."""
    return type(error)(f"Organization '{organization_id}': {error}")
