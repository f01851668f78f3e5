"""What the operator sets: the only place that reads the environment.

Here belong the variables, their defaults and what a valid value is, and the encryption key that the embedded
database gets by itself. What is done with a value (opening the database, choosing a shard, encrypting) does
not: whoever needs one is given it. Nothing is read before `load_settings` is called.

Messages name the variable and never show its value: a secret is easily pasted into the wrong one.
"""

import ipaddress
import os
import re
import stat
import tempfile
from collections.abc import Mapping
from datetime import time, timedelta
from pathlib import Path
from typing import Annotated
from urllib.parse import urlsplit

from cryptography.fernet import Fernet
from pydantic import AfterValidator, BeforeValidator, Field, SecretStr, ValidationError
from pydantic_settings import BaseSettings, EnvSettingsSource, PydanticBaseSettingsSource, SettingsConfigDict

from cliniko_pipeline.database_urls import wrong_parameter
from cliniko_pipeline.errors import SettingsError
from cliniko_pipeline.hosts import is_loopback

APPLICATION_NAME = "cliniko_pipeline"
LOOPBACK_CONTACT_EMAIL = "nobody@example.org"
"""Sent to a simulated Cliniko on this machine, which has nobody to write to."""

KEY_COMMAND = "python -c 'from cryptography.fernet import Fernet; print(Fernet.generate_key().decode())'"
"""Prints a new encryption key; for messages."""

API_SCOPES = frozenset({"read", "sync", "admin"})
"""What a token of the HTTP API may be good for; admin includes the others."""

_DATABASE_URL_FORM = "postgresql://USER:PASSWORD@HOST:5432/DATABASE"
_DATABASE_SCHEMES = frozenset({"postgresql", "postgres", "postgresql+psycopg", "postgresql+psycopg2"})
_SCHEME = re.compile(r"[a-z][a-z0-9+.-]{0,30}")
_FERNET_KEY = re.compile(r"[A-Za-z0-9_+/-]{43}=")
_HOST = re.compile(r"([a-z0-9_.-]+|\[[0-9a-f:.]+\])(:\d+)?", re.ASCII)
_HOST_NAME = re.compile(r"[a-z0-9_]([a-z0-9_-]*[a-z0-9_])?(\.[a-z0-9_]([a-z0-9_-]*[a-z0-9_])?)*")
# ASCII only, and no parenthesis: the address stands in a header, inside a pair of them.
_EMAIL = re.compile(r"[\w.!#$%&'*+/=?^`{|}~-]{1,64}@[a-z0-9-]+(\.[a-z0-9-]+)+", re.ASCII | re.IGNORECASE)
_ALERT_URL = re.compile(r"[a-z][a-z0-9]{1,30}://\S+", re.IGNORECASE)
_QUOTED = re.compile(r"""'(?:[^']|'')*'|"(?:[^"]|"")*\"""")
_ESCAPES = re.compile(r"(?<!\w)[eE]''")
_BETWEEN_URLS = re.compile(r"[\s,]+(?=[A-Za-z][A-Za-z0-9]{1,30}://)")
_MOST_MINUTES = 100_000_000
_KEY_FILE_LIMIT = 64 * 1024  # bytes


def load_settings(environ: Mapping[str, str] | None = None) -> "Settings":
    """Read the settings from `environ`, or from the process's environment.

    A blank value counts as unset. Raises SettingsError with everything that is wrong, in one line.
    """
    source = _MappingSource(os.environ if environ is None else environ)
    try:
        return Settings(**source())
    except ValidationError as error:
        problems = _problems(error)
    # Outside of the handler: pydantic's error holds the values, and must not travel along as the context.
    raise SettingsError(" ".join(problems))


def _database_url(value: str) -> str:
    scheme, separator, rest = value.strip().partition("://")
    scheme = scheme.lower()
    if not separator or not _SCHEME.fullmatch(scheme):
        raise ValueError(f"is not a database URL; write it as {_DATABASE_URL_FORM}.")
    if scheme not in _DATABASE_SCHEMES:
        raise ValueError(_foreign_database(scheme))
    _require_database_name(rest)
    if wrong := wrong_parameter(urlsplit(f"postgresql://{rest}").query):
        raise ValueError(wrong)
    return f"{scheme}://{rest}"


def _foreign_database(scheme: str) -> str:
    system, _, driver = scheme.partition("+")
    if system in {"postgres", "postgresql"}:
        return f"asks for the driver {driver}, which is not used here; write it as {_DATABASE_URL_FORM}."
    return (
        f"points at another database system ({system}); the pipeline needs PostgreSQL 14 or later:"
        f" {_DATABASE_URL_FORM}, or leave it unset for the embedded one."
    )


def _require_database_name(rest: str) -> None:
    if (database := _database_name(rest)) is None:
        raise ValueError(
            "cannot be read; percent-encode marks such as @ : / ? # in the user and the password,"
            f" and write it as {_DATABASE_URL_FORM}."
        )
    if not rest.isprintable():
        raise ValueError("holds a line break or another control character; paste it again as one line.")
    if not database:
        raise ValueError(f"names no database; write it as {_DATABASE_URL_FORM}.")


def _database_name(rest: str) -> str | None:
    """Return the database's name, perhaps blank; None where `rest` does not come apart as it should."""
    try:
        parts = urlsplit(f"postgresql://{rest}")
        readable = parts.port is None or parts.port > 0
    except ValueError:
        return None
    _, at, host = parts.netloc.rpartition("@")
    database = parts.path.removeprefix("/")
    # Each of these is what a password with an unescaped mark looks like from here.
    misplaced = rest.count("@") > len(at) or "#" in rest or "/" in database
    broken_host = host.endswith(":") or ("[" in host and not _is_host(host))
    return database if readable and not misplaced and not broken_host else None


def _encryption_keys(value: str) -> tuple[SecretStr, ...]:
    keys = _entries(value)
    for position, key in enumerate(keys, start=1):
        if not _FERNET_KEY.fullmatch(key):
            raise ValueError(
                f"holds something that is not a Fernet key (number {position} of {len(keys)});"
                f" make one with `{KEY_COMMAND}`."
            )
    return tuple(SecretStr(key) for key in dict.fromkeys(keys))


def _contact_email(value: str) -> str:
    if not _EMAIL.fullmatch(value.strip()):
        raise ValueError("must be one plain e-mail address, such as it@clinic.example.")
    return value.strip()


def _allowed_hosts(value: str) -> frozenset[str]:
    hosts = [entry.lower() for entry in _entries(value)]
    for position, host in enumerate(hosts, start=1):
        if not _is_host(host):
            raise ValueError(
                f"must be host or host:port, comma-separated, without scheme, path or wildcard"
                f" (number {position} of {len(hosts)} is not)."
            )
    return frozenset(hosts)


def _is_host(text: str) -> bool:
    try:
        parts = urlsplit(f"//{text}")
        port_in_range = parts.port is None or parts.port > 0
    except ValueError:
        return False
    return port_in_range and _HOST.fullmatch(text) is not None and _is_host_name(parts.hostname or "")


def _is_host_name(name: str) -> bool:
    if ":" not in name:
        return _HOST_NAME.fullmatch(name) is not None
    try:
        ipaddress.IPv6Address(name)
    except ValueError:
        return False
    return True


def _alert_urls(value: str) -> tuple[SecretStr, ...]:
    # A comma may stand inside of such a URL, between several addresses.
    urls = [url.strip() for url in _BETWEEN_URLS.split(value) if url.strip()]
    if not urls or not all(_ALERT_URL.fullmatch(url) for url in urls):
        raise ValueError(
            "must be Apprise URLs, such as mailto://USER:PASSWORD@HOST?to=ADDRESS or json://HOST/PATH, separated by"
            " white space or commas."
        )
    return tuple(map(SecretStr, urls))


def _ui_url(value: str) -> str:
    parts = urlsplit(value.strip())
    if parts.scheme not in {"http", "https"} or not parts.hostname or "@" in parts.netloc or parts.query:
        raise ValueError("must be where the Dagster UI is, such as https://dagster.example.org.")
    return value.strip().rstrip("/")


def _dagster_url(value: str) -> str:
    try:
        return _ui_url(value)
    except ValueError:
        raise ValueError("must be where Dagster's webserver answers, such as http://127.0.0.1:3000.") from None


def _oidc_issuer(value: str) -> str:
    parts = urlsplit(value.strip())
    is_safe = parts.scheme == "https" or (parts.scheme == "http" and is_loopback(parts.hostname or ""))
    if not is_safe or not parts.hostname or "@" in parts.netloc or parts.query or parts.fragment:
        raise ValueError(
            "must be an issuer's https URL as its tokens' claim iss has it, such as https://id.example.org."
        )
    return value.strip()


def _claim(value: str) -> str:
    if not re.fullmatch(r"[^\s.]+(\.[^\s.]+)*", value.strip()):
        raise ValueError("must be the name of a claim, such as org_id, or of one within another, such as o.id.")
    return value.strip()


def _networks(value: str) -> tuple[str, ...]:
    try:
        return tuple(str(ipaddress.ip_network(each)) for each in _entries(value))
    except ValueError:
        raise ValueError("must be addresses or networks of proxies, such as 127.0.0.1, 10.0.0.0/8.") from None


def _oidc_scopes(value: str) -> frozenset[str]:
    scopes = frozenset(value.replace(",", " ").split())
    if not scopes or not scopes <= API_SCOPES:
        raise ValueError("must be one or more of read, sync and admin.")
    return scopes


def _condition(value: str) -> str:
    """Accept what stays within a pair of parentheses around it."""
    outside_quotes = _QUOTED.sub("''", value)
    if _ESCAPES.search(outside_quotes):
        raise ValueError("must hold no string with backslash escapes; double the quotes within strings.")
    if any(mark in outside_quotes for mark in (";", "--", "/*", "*/", "$")):
        raise ValueError("must be one SQL condition, without semicolons, comments and dollar signs outside of quotes.")
    if set(_QUOTED.sub("", value)) & set("'\""):
        raise ValueError("has a quote that is never closed.")
    depth = 0
    for mark in re.findall("[()]", outside_quotes):
        depth += 1 if mark == "(" else -1
        if depth < 0:
            break
    if depth:
        raise ValueError("has parentheses that do not match.")
    return value.strip()


def _absolute(path: Path) -> Path:
    try:
        return path.expanduser().absolute()
    except RuntimeError:
        raise ValueError("names the home directory of a user that does not exist; write the full path.") from None


def time_of_day(text: str) -> time:
    """Return a time of day written as HH:MM. Raises ValueError."""
    if not re.fullmatch(r"([01]\d|2[0-3]):[0-5]\d", text.strip(), re.ASCII):
        raise ValueError("must be a time of day such as 02:30")
    return time.fromisoformat(text.strip())


def _time_of_day(value: str) -> time | None:
    if value.strip().lower() == "off":
        return None
    try:
        return time_of_day(value)
    except ValueError:
        raise ValueError("must be a time of day such as 02:30, or off.") from None


def _entries(value: str) -> list[str]:
    return [entry.strip() for entry in value.split(",") if entry.strip()]


class Settings(BaseSettings):
    """All settings of one process, checked. Made by `load_settings`; the aliases are the variables' names."""

    model_config = SettingsConfigDict(
        frozen=True,
        case_sensitive=True,
        enable_decoding=False,
        validate_default=False,
        hide_input_in_errors=True,
    )

    database_url: Annotated[str, BeforeValidator(_database_url)] | None = Field(
        default=None, validation_alias="DATABASE_URL", repr=False
    )
    """The operator's PostgreSQL, as given but for a scheme in lower case (postgresql, postgres,
    postgresql+psycopg or postgresql+psycopg2): consumers choose their own driver. None: the embedded one."""

    encryption_keys: Annotated[tuple[SecretStr, ...], BeforeValidator(_encryption_keys)] = Field(
        default=(), validation_alias="CREDENTIALS_ENCRYPTION_KEY"
    )
    """Fernet keys, the first encrypts. May be empty: `ensure_encryption_keys` is what consumers call."""

    contact_email: Annotated[str, BeforeValidator(_contact_email)] | None = Field(
        default=None, validation_alias="CLINIKO_CONTACT_EMAIL"
    )

    requests_per_minute: int = Field(
        default=200,
        ge=1,
        le=100_000,
        validation_alias="CLINIKO_REQUESTS_PER_MINUTE",
        description="a whole number from 1 to 100000",
    )
    """Per API key. Cliniko documents 200 per user."""

    allowed_hosts: Annotated[frozenset[str], BeforeValidator(_allowed_hosts)] = Field(
        default=frozenset(), validation_alias="CLINIKO_ALLOWED_HOSTS"
    )
    """`host` or `host:port` in lower case (IPv6 in brackets), accepted besides `api.{shard}.cliniko.com`."""

    home: Annotated[Path, AfterValidator(_absolute)] = Field(
        default_factory=lambda: Path(".cliniko").absolute(), validation_alias="CLINIKO_PIPELINE_HOME"
    )
    """Where the pipeline keeps what it needs on this machine; absolute, and perhaps not there yet."""

    dagster_home: Annotated[Path, AfterValidator(_absolute)] = Field(
        default_factory=lambda validated: validated["home"] / "dagster", validation_alias="DAGSTER_HOME"
    )
    """The Dagster instance; absolute, as Dagster demands, and perhaps not there yet."""

    activity_window_days: int = Field(
        default=60,
        ge=1,
        le=3650,
        validation_alias="CLINIKO_ACTIVITY_WINDOW_DAYS",
        description="a whole number of days from 1 to 3650",
    )
    """How far back from `as_of` an attendance makes a person active."""

    count_no_shows: bool = Field(default=True, validation_alias="CLINIKO_COUNT_NO_SHOWS", description="true or false")
    """Whether an appointment counts that was booked and not cancelled, but not attended."""

    contacts_filter: Annotated[str, BeforeValidator(_condition)] | None = Field(
        default=None, validation_alias="CLINIKO_CONTACTS_FILTER"
    )
    """An SQL condition that rows of public.contacts must meet to count, on one level of parentheses; None: all do.
    Whether PostgreSQL understands it, `migrate` finds out."""

    vanished_share_limit: float = Field(
        default=0.2,
        ge=0,
        le=1,
        validation_alias="CLINIKO_VANISHED_SHARE_LIMIT",
        description="a share from 0 to 1",
    )
    """Above this share of a resource's records, what a full sync no longer finds is not believed to be deleted."""

    lost_matches_share_limit: float = Field(
        default=0.2,
        ge=0,
        le=1,
        validation_alias="CLINIKO_LOST_MATCHES_SHARE_LIMIT",
        description="a share from 0 to 1",
    )
    """Above this share of an organization's matches (and at least ten), a sync that would lose them is not believed."""

    sync_every_minutes: int = Field(
        default=60,
        ge=0,
        le=1440,
        validation_alias="CLINIKO_SYNC_EVERY_MINUTES",
        description="a whole number of minutes from 1 to 1440, or 0 for never",
    )
    """How often the schedule syncs an organization that has no schedule of its own; 0: never by itself."""

    full_sync_at: Annotated[time | None, BeforeValidator(_time_of_day)] = Field(
        default=time(2), validation_alias="CLINIKO_FULL_SYNC_AT"
    )
    """When, by the time of the organization's time zone, the first of the nightly full syncs begins; None: never by
    itself."""

    full_sync_spread_minutes: int = Field(
        default=240,
        ge=0,
        le=1439,
        validation_alias="CLINIKO_FULL_SYNC_SPREAD_MINUTES",
        description="a whole number of minutes from 0 to 1439",
    )
    """Over how long after that the nightly full syncs are spread."""

    compare_counts_every_hours: int = Field(
        default=24,
        ge=0,
        le=168,
        validation_alias="CLINIKO_COMPARE_COUNTS_EVERY_HOURS",
        description="a whole number of hours from 1 to 168, or 0 for never",
    )
    """How often the schedule compares an organization's numbers of records with Cliniko's; 0: never by itself."""

    fresh_within_minutes: int = Field(
        default=180,
        ge=1,
        le=43_200,
        validation_alias="CLINIKO_FRESH_WITHIN_MINUTES",
        description="a whole number of minutes from 1 to 43200",
    )
    """How old `active_patients` may be. An organization that is synced less often may be two of its turns old."""

    unmatched_share_limit: float = Field(
        default=0.5,
        ge=0,
        le=1,
        validation_alias="CLINIKO_UNMATCHED_SHARE_LIMIT",
        description="a share from 0 to 1",
    )
    """Above this share of people without a contact, the mapping is to be looked at."""

    alert_urls: Annotated[tuple[SecretStr, ...], BeforeValidator(_alert_urls)] = Field(
        default=(), validation_alias="CLINIKO_ALERT_URLS"
    )
    """Where alerts go, as Apprise writes channels: mailto://, slack://, msteams://, json:// and many more."""

    max_clock_skew_minutes: int = Field(
        default=60,
        ge=1,
        le=_MOST_MINUTES,
        validation_alias="CLINIKO_MAX_CLOCK_SKEW_MINUTES",
        description="a whole number of minutes, at least 1",
    )
    """How far this machine's clock and Cliniko's may be from the database's for a sync to write anything."""

    alert_after_failures: int = Field(
        default=3,
        ge=1,
        le=100,
        validation_alias="CLINIKO_ALERT_AFTER_FAILURES",
        description="a whole number from 1 to 100",
    )
    """How many runs in a row must fail for a reason that passes to be told of; what does not pass is told at once."""

    alert_repeat_hours: int = Field(
        default=24,
        ge=0,
        le=8760,
        validation_alias="CLINIKO_ALERT_REPEAT_HOURS",
        description="a whole number of hours from 1 to 8760, or 0 for never",
    )
    """After how long something that is still wrong is told again; 0: never."""

    ui_url: Annotated[str, BeforeValidator(_ui_url)] = Field(
        default="http://127.0.0.1:3000", validation_alias="CLINIKO_UI_URL"
    )
    """Where the Dagster UI is, for links; without a slash at the end."""

    ui_hosts: Annotated[frozenset[str], BeforeValidator(_allowed_hosts)] = Field(
        default=frozenset(), validation_alias="CLINIKO_UI_HOSTS"
    )
    """`host` or `host:port` by which the Dagster UI is reached besides those of `ui_url`, `dagster_url` and this
    machine."""

    dagster_url: Annotated[str, BeforeValidator(_dagster_url)] = Field(
        default_factory=lambda validated: validated["ui_url"], validation_alias="API_DAGSTER_URL"
    )
    """Where the HTTP API reaches Dagster's webserver; without a slash at the end."""

    api_requests_per_minute: int = Field(
        default=600,
        ge=1,
        le=100_000,
        validation_alias="API_REQUESTS_PER_MINUTE",
        description="a whole number from 1 to 100000",
    )
    """What a token may ask of the HTTP API, unless it was given a limit of its own."""

    trusted_proxies: Annotated[tuple[str, ...], BeforeValidator(_networks)] = Field(
        default=(), validation_alias="API_TRUSTED_PROXIES"
    )
    """Addresses or networks of proxies whose X-Forwarded-For and X-Forwarded-Proto the HTTP API believes."""

    oidc_issuer: Annotated[str, BeforeValidator(_oidc_issuer)] | None = Field(
        default=None, validation_alias="API_OIDC_ISSUER"
    )
    """Whose JSON Web Tokens the HTTP API accepts besides its own tokens; None: nobody's."""

    oidc_audience: str | None = Field(default=None, validation_alias="API_OIDC_AUDIENCE")
    """What a JWT's claim `aud` must hold; None: that is not looked at."""

    oidc_organization_claim: Annotated[str, BeforeValidator(_claim)] = Field(
        default="org_id", validation_alias="API_OIDC_ORGANIZATION_CLAIM"
    )
    """The claim that holds the id of the one organization a JWT is for; dots lead into objects."""

    oidc_scopes: Annotated[frozenset[str], BeforeValidator(_oidc_scopes)] = Field(
        default=frozenset({"read"}), validation_alias="API_OIDC_SCOPES"
    )
    """What whoever has such a JWT may do."""

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],  # noqa: ARG003 - pydantic-settings passes them all by name
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Take only what `load_settings` hands over: no second look at the environment, no .env file."""
        return (init_settings,)

    @property
    def fresh_within(self) -> timedelta:
        """How old `active_patients` may be."""
        return timedelta(minutes=self.fresh_within_minutes)

    @property
    def embedded_database(self) -> bool:
        """Whether the pipeline runs its own PostgreSQL under `home`."""
        return self.database_url is None

    @property
    def user_agent(self) -> str:
        """The User-Agent for real hosts. Raises SettingsError where no contact address is set."""
        return _user_agent(self._set_contact_email())

    def user_agent_for(self, api_url: str) -> str:
        """Name the pipeline to `api_url`; on a loopback host a placeholder stands in for an unset address.

        Raises SettingsError where the host is another and no contact address is set.
        """
        return _user_agent(self.require_contact_email(api_url))

    def require_contact_email(self, api_url: str) -> str:
        """Return the address that requests to `api_url` name; Cliniko may block those that name none.

        Raises SettingsError where none is set and the host is not a loopback one.
        """
        if self.contact_email is None and _is_on_this_machine(api_url):
            return LOOPBACK_CONTACT_EMAIL
        return self._set_contact_email()

    def ensure_encryption_keys(self) -> tuple[SecretStr, ...]:
        """Return the encryption keys, at least one; with the embedded database only, make a missing one.

        A key so made stands in `home/encryption.key`, mode 0600, and is used from then on; the file may hold
        several, as the variable may.
        Raises SettingsError where there is no key and none may be made, or the file cannot be used.
        """
        if self.encryption_keys:
            return self.encryption_keys
        if not self.embedded_database:
            raise SettingsError(
                "CREDENTIALS_ENCRYPTION_KEY is not set, and with DATABASE_URL none is made by itself; set it"
                " to the key that the stored credentials were encrypted with, or, if there are none yet, make"
                f" one with `{KEY_COMMAND}`."
            )
        return _ensure_key_file(self.home / "encryption.key")

    def _set_contact_email(self) -> str:
        if self.contact_email is None:
            raise SettingsError(
                "CLINIKO_CONTACT_EMAIL is not set, and Cliniko may block requests that name nobody to write"
                " to; set it to an e-mail address that someone reads."
            )
        return self.contact_email


class _MappingSource(EnvSettingsSource):
    """Reads the variables from a mapping; white space alone counts as unset."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        self._environ = environ
        super().__init__(Settings)

    def _load_env_vars(self) -> Mapping[str, str | None]:
        return {name: value for name, value in self._environ.items() if value.strip()}


def _problems(error: ValidationError) -> list[str]:
    problems: list[str] = []
    for detail in error.errors(include_input=False, include_url=False):
        # DAGSTER_HOME's default hangs on the other fields; that it has none then is no problem of its own.
        if detail["type"] == "default_factory_not_called":
            continue
        variable = str(detail["loc"][0])
        raised = detail.get("ctx", {}).get("error")
        problems.append(f"{variable} {raised or f'must be {_descriptions()[variable]}.'}")
    return problems


def _descriptions() -> dict[str, str]:
    """Say what a value must be, by variable, where pydantic's own checks find it wrong."""
    return {str(field.validation_alias): field.description or "usable" for field in Settings.model_fields.values()}


def _user_agent(contact_email: str) -> str:
    return f"{APPLICATION_NAME} ({contact_email})"


def _is_on_this_machine(api_url: str) -> bool:
    try:
        return is_loopback(urlsplit(api_url).hostname or "")
    except ValueError:
        return False


def _ensure_key_file(path: Path) -> tuple[SecretStr, ...]:
    try:
        if not path.exists():
            _create_key_file(path)
        mode, text = _read_key_file(path)
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not text"
        raise SettingsError(
            f"The encryption key file {path} cannot be used ({reason}); mend that, or set CREDENTIALS_ENCRYPTION_KEY."
        ) from None
    _require_private(path, mode)
    if not (keys := _keys_in_file(text)):
        raise SettingsError(
            f"The encryption key file {path} does not hold a Fernet key; restore it from a backup, or, if no"
            " credentials are stored yet, delete it and a new one is made."
        )
    return keys


def _create_key_file(path: Path) -> None:
    """Write a new key under another name (opened O_EXCL, mode 0600) and link it to `path`.

    link() never replaces a file and a reader never sees half of one: of two processes at once, one makes the
    key and both use it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(prefix=".encryption.key.", dir=path.parent)
    draft = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(Fernet.generate_key() + b"\n")
            file.flush()
            os.fsync(file.fileno())
        path.hardlink_to(draft)
    except FileExistsError:
        pass  # The other process was first: its key is the key.
    finally:
        draft.unlink()


def _read_key_file(path: Path) -> tuple[int, str]:
    with path.open("rb") as file:
        return os.fstat(file.fileno()).st_mode, file.read(_KEY_FILE_LIMIT).decode("ascii")


def _require_private(path: Path, mode: int) -> None:
    if stat.S_IMODE(mode) & 0o077:
        raise SettingsError(
            f"The encryption key file {path} is open to other users (mode {stat.S_IMODE(mode):04o});"
            f" run: chmod 600 {path} (where that has no effect, set CREDENTIALS_ENCRYPTION_KEY instead)."
        )


def _keys_in_file(text: str) -> tuple[SecretStr, ...]:
    try:
        return _encryption_keys(text)
    except ValueError:
        return ()
