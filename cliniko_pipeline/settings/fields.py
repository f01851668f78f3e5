"""The settings by group. The page docs/configuration.md is generated from this module."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import time
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, SecretStr

from cliniko_pipeline.settings import database_urls, validators


@dataclass(frozen=True)
class Variable:
    """One environment variable, for the configuration page and for errors."""

    name: str
    meaning: str
    values: str
    """The end of the sentence "must be ..."."""

    default: str


class _Group(BaseModel):
    model_config = ConfigDict(frozen=True, hide_input_in_errors=True)


def _setting(name: str, default: Any, meaning: str, *, values: str, shown: str = "none", **field: Any) -> Any:
    """Describe a field; `shown` is its default on the configuration page."""
    if isinstance(default, Callable):
        field["default_factory"] = default
    else:
        field["default"] = default
    return Field(
        validation_alias=name, description=meaning, json_schema_extra={"values": values, "shown": shown}, **field
    )


def _number(
    name: str, default: int, meaning: str, *, unit: str, at_least: int = 1, at_most: int, zero: str = ""
) -> Any:
    """Describe a whole number. With `zero`, the number may also be 0, which means `zero`."""
    values = f"a whole number of {unit} from {at_least} to {at_most}" + (f", or 0 for {zero}" if zero else "")
    return _setting(name, default, meaning, values=values, shown=str(default), ge=0 if zero else at_least, le=at_most)


def _share(name: str, default: float, meaning: str) -> Any:
    return _setting(name, default, meaning, values="a share from 0 to 1", shown=str(default), ge=0, le=1)


def variables(group: type[BaseModel]) -> Iterator[Variable]:
    """Return the variables of a group, in order."""
    for field in group.model_fields.values():
        shown: Any = field.json_schema_extra
        yield Variable(str(field.validation_alias), field.description or "", shown["values"], shown["shown"])


def _default_dagster_home(validated: dict[str, Any]) -> Path:
    return validated["home"] / "dagster"


def _default_dagster_url(validated: dict[str, Any]) -> str:
    return validated["ui_url"]


class StorageSettings(_Group):
    """Database, key and folders."""

    database_url: Annotated[str, BeforeValidator(database_urls.database_url)] | None = _setting(
        "DATABASE_URL",
        None,
        "Your PostgreSQL, version 14 or later.",
        values=f"`{database_urls.URL_FORM}`",
        shown="an embedded server in `CLINIKO_PIPELINE_HOME`",
        repr=False,
    )
    encryption_keys: Annotated[tuple[SecretStr, ...], BeforeValidator(validators.encryption_keys)] = _setting(
        "CREDENTIALS_ENCRYPTION_KEY",
        (),
        "Encrypts the stored API keys. The first key encrypts, all decrypt.",
        values="Fernet keys, comma-separated",
        shown="with the embedded server: generated once into `encryption.key`; otherwise required",
    )
    home: Annotated[Path, AfterValidator(validators.absolute_path)] = _setting(
        "CLINIKO_PIPELINE_HOME",
        lambda: Path(".cliniko").absolute(),
        "Folder of the embedded server and of the key file.",
        values="a folder",
        shown="`.cliniko` in the current folder",
    )
    dagster_home: Annotated[Path, AfterValidator(validators.absolute_path)] = _setting(
        "DAGSTER_HOME",
        _default_dagster_home,
        "Folder of the Dagster instance. An existing `dagster.yaml` stays as it is.",
        values="a folder",
        shown="`dagster` in `CLINIKO_PIPELINE_HOME`",
    )


class ClinikoSettings(_Group):
    """Requests to Cliniko."""

    contact_email: Annotated[str, BeforeValidator(validators.contact_email)] | None = _setting(
        "CLINIKO_CONTACT_EMAIL",
        None,
        "Part of the User-Agent. Cliniko may block requests without a contact address.",
        values="an e-mail address",
        shown="none; required except for a sandbox on this machine",
    )
    requests_per_minute: int = _number(
        "CLINIKO_REQUESTS_PER_MINUTE",
        200,
        "Request budget of one API key, shared by all processes. Cliniko documents 200.",
        unit="requests",
        at_most=100_000,
    )
    allowed_hosts: Annotated[frozenset[str], BeforeValidator(validators.hosts)] = _setting(
        "CLINIKO_ALLOWED_HOSTS",
        frozenset[str](),
        "Hosts of API URLs besides `api.{shard}.cliniko.com`. Plain http is accepted on loopback only.",
        values="`host` or `host:port`, comma-separated",
    )


class RuleSettings(_Group):
    """Active patients and contacts."""

    activity_window_days: int = _number(
        "CLINIKO_ACTIVITY_WINDOW_DAYS",
        60,
        "Greatest age of an attendance that makes a person active.",
        unit="days",
        at_most=3650,
    )
    count_no_shows: bool = _setting(
        "CLINIKO_COUNT_NO_SHOWS",
        True,
        "Whether an appointment that was neither attended nor cancelled makes a person active.",
        values="true or false",
        shown="true",
    )
    contacts_filter: Annotated[str, BeforeValidator(validators.sql_condition)] | None = _setting(
        "CLINIKO_CONTACTS_FILTER",
        None,
        "Contacts that are matched with patients. Run `migrate` after a change.",
        values="an SQL condition on columns of `public.contacts`",
        shown="all contacts",
    )


class ScheduleSettings(_Group):
    """Schedules of organizations without their own schedule."""

    sync_every_minutes: int = _number(
        "CLINIKO_SYNC_EVERY_MINUTES", 60, "Time between two syncs.", unit="minutes", at_most=1440, zero="never"
    )
    full_sync_at: Annotated[time | None, BeforeValidator(validators.time_of_day_or_off)] = _setting(
        "CLINIKO_FULL_SYNC_AT",
        time(2),
        "Start of the nightly full syncs, in the organization's time zone.",
        values="a time of day such as 02:30, or off",
        shown="02:00",
    )
    full_sync_spread_minutes: int = _number(
        "CLINIKO_FULL_SYNC_SPREAD_MINUTES",
        240,
        "Period over which the nightly full syncs are spread.",
        unit="minutes",
        at_least=0,
        at_most=1439,
    )
    compare_counts_every_hours: int = _number(
        "CLINIKO_COMPARE_COUNTS_EVERY_HOURS",
        24,
        "Time between two comparisons of the numbers of records with Cliniko's.",
        unit="hours",
        at_most=168,
        zero="never",
    )


class SafeguardSettings(_Group):
    """Limits beyond which a sync fails."""

    vanished_share_limit: float = _share(
        "CLINIKO_VANISHED_SHARE_LIMIT",
        0.2,
        "Largest share of a resource's records that a full sync may mark as deleted in Cliniko.",
    )
    lost_matches_share_limit: float = _share(
        "CLINIKO_LOST_MATCHES_SHARE_LIMIT",
        0.2,
        "Largest share of an organization's matches of patients and contacts that a sync may lose. The limit does not"
        " apply to fewer than ten lost matches.",
    )
    max_clock_skew_minutes: int = _number(
        "CLINIKO_MAX_CLOCK_SKEW_MINUTES",
        60,
        "Largest difference of this machine's or Cliniko's clock from the database's clock. A difference above a"
        " twelfth of this limit is reported.",
        unit="minutes",
        at_most=100_000_000,
    )


class AlertSettings(_Group):
    """Alerts."""

    fresh_within_minutes: int = _number(
        "CLINIKO_FRESH_WITHIN_MINUTES",
        180,
        "Age of `active_patients` above which an alert is sent. The limit is at least twice the organization's time"
        " between syncs.",
        unit="minutes",
        at_most=43_200,
    )
    unmatched_share_limit: float = _share(
        "CLINIKO_UNMATCHED_SHARE_LIMIT", 0.5, "Share of people without a contact above which an alert is sent."
    )
    alert_urls: Annotated[tuple[SecretStr, ...], BeforeValidator(validators.alert_urls)] = _setting(
        "CLINIKO_ALERT_URLS",
        (),
        "Channels of alerts. They contain secrets.",
        values="[Apprise](https://github.com/caronc/apprise) URLs, separated by white space or commas",
    )
    alert_after_failures: int = _number(
        "CLINIKO_ALERT_AFTER_FAILURES",
        3,
        "Consecutive transient failures before an alert is sent.",
        unit="failures",
        at_most=100,
    )
    alert_repeat_hours: int = _number(
        "CLINIKO_ALERT_REPEAT_HOURS",
        24,
        "Time after which the alert of a lasting problem is sent again.",
        unit="hours",
        at_most=8760,
        zero="never",
    )


class RetentionSettings(_Group):
    """Deletion of old data, by `cliniko-pipeline prune` and once a day."""

    keep_event_details_days: int = _number(
        "CLINIKO_KEEP_EVENT_DETAILS_DAYS",
        3,
        "Time for which Dagster's log messages and the events of inputs and outputs are kept.",
        unit="days",
        at_most=3650,
    )
    keep_runs_days: int = _number(
        "CLINIKO_KEEP_RUNS_DAYS",
        30,
        "Time for which Dagster's ended runs are kept, with their other events and check results.",
        unit="days",
        at_most=3650,
        zero="always",
    )
    keep_syncs_days: int = _number(
        "CLINIKO_KEEP_SYNCS_DAYS",
        30,
        "Time for which `cliniko.sync_runs` keeps ended syncs. The daily numbers of active patients are kept for two"
        " years.",
        unit="days",
        at_most=3650,
        zero="always",
    )
    keep_deliveries_days: int = _number(
        "CLINIKO_KEEP_DELIVERIES_DAYS",
        30,
        "Time for which ended webhook deliveries are kept.",
        unit="days",
        at_most=3650,
        zero="always",
    )
    keep_webhook_events_days: int = _number(
        "CLINIKO_KEEP_WEBHOOK_EVENTS_DAYS",
        3,
        "Time for which received webhook events are kept, so that a repeated event is recognized.",
        unit="days",
        at_most=3650,
        zero="always",
    )
    keep_refusals_days: int = _number(
        "CLINIKO_KEEP_REFUSALS_DAYS",
        90,
        "Time for which refused requests of the HTTP API are kept.",
        unit="days",
        at_most=3650,
        zero="always",
    )


class UiSettings(_Group):
    """The Dagster UI."""

    ui_url: Annotated[str, BeforeValidator(validators.ui_url)] = _setting(
        "CLINIKO_UI_URL",
        "http://127.0.0.1:3000",
        "Address of the Dagster UI, for links in alerts.",
        values="an http or https URL",
        shown="`http://127.0.0.1:3000`, or where `cliniko-pipeline ui` serves it",
    )
    ui_hosts: Annotated[frozenset[str], BeforeValidator(validators.hosts)] = _setting(
        "CLINIKO_UI_HOSTS",
        frozenset[str](),
        "Hosts of the UI besides this machine and the hosts of `CLINIKO_UI_URL` and `API_DAGSTER_URL`.",
        values="`host` or `host:port`, comma-separated",
    )


class ApiSettings(_Group):
    """The HTTP API."""

    dagster_url: Annotated[str, BeforeValidator(validators.dagster_url)] = _setting(
        "API_DAGSTER_URL",
        _default_dagster_url,
        "Address of Dagster's webserver, to which the API sends requested syncs.",
        values="an http or https URL",
        shown="`CLINIKO_UI_URL`",
    )
    api_requests_per_minute: int = _number(
        "API_REQUESTS_PER_MINUTE",
        600,
        "Request limit of an API token that has no limit of its own.",
        unit="requests",
        at_most=100_000,
    )
    trusted_proxies: Annotated[tuple[str, ...], BeforeValidator(validators.networks)] = _setting(
        "API_TRUSTED_PROXIES",
        (),
        "Proxies whose `X-Forwarded-For` and `X-Forwarded-Proto` are trusted. They must replace clients' own headers.",
        values="addresses or networks, comma-separated",
        shown="none: refusals are logged with the proxy's address",
    )
    oidc_issuer: Annotated[str, BeforeValidator(validators.oidc_issuer)] | None = _setting(
        "API_OIDC_ISSUER",
        None,
        "Issuer whose JWTs, valid for 24 hours at most, are accepted besides the API's own tokens.",
        values="an https URL, exactly as the claim `iss`",
    )
    oidc_audience: str | None = _setting(
        "API_OIDC_AUDIENCE",
        None,
        "Required content of a JWT's claim `aud`.",
        values="a text",
        shown="none: the claim is not checked",
    )
    oidc_organization_claim: Annotated[str, BeforeValidator(validators.claim)] = _setting(
        "API_OIDC_ORGANIZATION_CLAIM",
        "org_id",
        "Claim with the id of the one organization that a JWT is for; `o.id` is `id` within `o`.",
        values="the name of a claim",
        shown="`org_id`",
    )
    oidc_scopes: Annotated[frozenset[str], BeforeValidator(validators.oidc_scopes)] = _setting(
        "API_OIDC_SCOPES",
        frozenset({"read"}),
        "Scopes of a JWT.",
        values="one or more of read, sync and admin",
        shown="read",
    )


GROUPS: tuple[type[BaseModel], ...] = (
    StorageSettings,
    ClinikoSettings,
    RuleSettings,
    ScheduleSettings,
    SafeguardSettings,
    AlertSettings,
    RetentionSettings,
    UiSettings,
    ApiSettings,
)
"""The groups in the order of the configuration page."""
