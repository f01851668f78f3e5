"""Writes what assets return into their tables, for the organization of the partition, and reads it back.

It takes three kinds of value: a stream of record batches, a query, and a pandas DataFrame. Whatever it does stands in
`cliniko.sync_runs`, also when it fails.
"""

import sys
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any, cast

import dagster as dg

from cliniko_pipeline.errors import (
    AuthenticationError,
    ClinikoPipelineError,
    CredentialsError,
    DataError,
    LostMatchesError,
    PermissionDeniedError,
    SettingsError,
)
from cliniko_pipeline.orchestration.assets.values import (
    MATCHES_ARE_KEPT,
    RecordBatch,
    RecordStream,
    RequestCost,
    TableQuery,
    TableReference,
)
from cliniko_pipeline.orchestration.checks.clocks import store_clock_check
from cliniko_pipeline.orchestration.partitions import ORGANIZATIONS
from cliniko_pipeline.orchestration.record_batches import WritingBehind
from cliniko_pipeline.orchestration.runs.failures import failure
from cliniko_pipeline.orchestration.runs.recomputation import is_complete_sync, is_forced, is_full
from cliniko_pipeline.orchestration.ui_metadata.column_lineage import lineage
from cliniko_pipeline.orchestration.ui_metadata.tables import numbers, problems
from cliniko_pipeline.postgres.engine import sql
from cliniko_pipeline.postgres.operator_tables import scheduling, sync_runs
from cliniko_pipeline.postgres.operator_tables.check_results import CheckResult, note_checks
from cliniko_pipeline.postgres.writing import crawls, derivations
from cliniko_pipeline.postgres.writing.derivations import Derivation
from cliniko_pipeline.postgres.writing.merge import Written, replace_by_query
from cliniko_pipeline.runtime import Runtime

if TYPE_CHECKING:
    import pandas as pd

ACTIVE_PATIENTS_KEY = dg.AssetKey("active_patients")
"""What is written last: when that has succeeded, the sync has."""

REFUSED_ONCE = "That may pass: only if Cliniko refuses a later attempt, too, is the organization paused."


@dataclass
class _Result:
    written: Written = field(default_factory=Written)
    records: int | None = None
    rejected: int = 0
    cost: RequestCost = field(default_factory=RequestCost)
    require_turn: Callable[[], None] = lambda: None
    is_computed: bool | None = None
    rows: int | None = None

    def add(self, batch: RecordBatch, written: Written) -> None:
        self.written += written
        self.records = (self.records or 0) + len(batch.rows)
        self.rejected += len(batch.rejected)

    def counts(self) -> dict[str, int]:
        read = {} if self.records is None else {"records": self.records, "rejected": self.rejected}
        rows = {} if self.rows is None else {"rows": self.rows}
        return (
            read
            | rows
            | {
                "inserted": self.written.inserted,
                "updated": self.written.updated,
                "deleted": self.written.deleted,
            }
        )


class PostgresIOManager(dg.IOManager):
    """Assets partitioned by organization, stored in PostgreSQL in the organization's context."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._database = runtime.database

    def handle_output(self, context: dg.OutputContext, obj: object) -> None:
        """Writes `obj` in transactions; the metadata tell what became of the table.

        Raises Failure, one line, without retries where the error is permanent.
        """
        organization_id = _organization_of(context)
        force = is_forced(context.step_context.job_def, context.step_context.run_config)
        with self._recorded(context, organization_id) as result:
            match obj:
                case RecordStream():
                    self._write_stream(organization_id, obj, result)
                case TableQuery():
                    self._write_query(organization_id, obj, result, force=force)
                case _ if _is_data_frame(obj):
                    from cliniko_pipeline.postgres.writing import frames  # noqa: PLC0415

                    schema, table = _schema_and_table(context.asset_key)
                    result.written = frames.write(
                        self._database, organization_id, schema, table, cast("pd.DataFrame", obj)
                    )
                case _:
                    raise DataError(
                        f"The asset {context.asset_key.to_user_string()} returned a {type(obj).__name__}: the IO"
                        " manager writes a RecordStream, a TableQuery or a pandas DataFrame."
                    )
            metadata = self._metadata(organization_id, context.asset_key, result, force=force)
            context.add_output_metadata(metadata)  # pyright: ignore[reportUnknownMemberType] (Dagster's own)

    def load_input(self, context: dg.InputContext) -> "pd.DataFrame | TableReference":
        """The organization's rows as a DataFrame, or a TableReference where the input is annotated as one."""
        schema, table = _schema_and_table(context.asset_key)
        organization_id = _organization_of(context)
        if context.dagster_type.typing_type is TableReference:
            return TableReference(f'"{schema}"."{table}"', organization_id)
        from cliniko_pipeline.postgres.writing import frames  # noqa: PLC0415

        try:
            return frames.read(self._database, organization_id, schema, table)
        except ClinikoPipelineError as error:
            raise failure(error) from None

    def _write_stream(self, organization_id: str, stream: RecordStream, result: _Result) -> None:
        result.records = 0
        try:
            with WritingBehind(self._database, organization_id, result.add, result.require_turn) as writing:
                for batch in stream.batches():
                    writing.write(batch)
        finally:
            result.cost = stream.cost()

    def _write_query(self, organization_id: str, query: TableQuery, result: _Result, *, force: bool) -> None:
        text = sql(query.query)
        with self._database.organization(organization_id) as connection:
            crawls.require_complete(connection, query.requires)
            parameters = query.parameters()
            if not query.inputs:
                result.written = replace_by_query(connection, query.table, text, parameters, query.inspect)
                return
            derivation = Derivation(query.table, text, query.inputs, parameters, query.inspect)
            written = derivations.write(connection, derivation, force=force)
            result.written, result.is_computed = written or Written(), written is not None

    def _metadata(self, organization_id: str, key: dg.AssetKey, result: _Result, *, force: bool) -> Mapping[str, Any]:
        schema, table = _schema_and_table(key)
        with self._database.organization(organization_id) as connection:
            result.rows = derivations.row_count(connection, schema, table, force=force)
            plotted = numbers(connection, schema, table, force=force)
            wrong = problems(connection, schema, table)
        metadata: dict[str, Any] = {
            "dagster/row_count": result.rows,
            **plotted,
            "rows_changed": result.written.inserted + result.written.updated + result.written.deleted,
            "rows_inserted": result.written.inserted,
            "rows_updated": result.written.updated,
            "rows_deleted": result.written.deleted,
            **wrong,
            **lineage(key),
        }
        if result.is_computed is not None:
            metadata["computed_again"] = result.is_computed
        if result.records is not None:
            metadata |= {
                "records_read": result.records,
                "records_rejected": result.rejected,
                "requests": result.cost.requests,
                "requests_retried": result.cost.retries,
                "requests_rate_limited": result.cost.rate_limited,
                "seconds_waited": round(result.cost.seconds_waited, 1),
                **store_clock_check(self._runtime, organization_id, result.cost.clock_difference),
            }
        return metadata

    @contextmanager
    def _recorded(self, context: dg.OutputContext, organization_id: str) -> Generator[_Result, None, None]:
        """Keeps `cliniko.sync_runs` in step with what happens inside."""
        result = _Result()
        asset = context.asset_key.to_user_string()
        credentials: str | None = None
        try:
            with self._database.operator() as connection:
                # Before they are used: what is stored when they fail may be others.
                credentials = scheduling.credentials_digest(connection, organization_id)
            with self._database.organization(organization_id) as connection:
                sync_runs.note_started(
                    connection,
                    run_id=context.run_id,
                    asset=asset,
                    planned=_planned(context),
                    is_full=is_full(context.step_context.run_config),
                )
            self._runtime.machine_clock().require_allowed()
            with self._database.turn(organization_id) as result.require_turn:
                yield result
            began_at = self._finish(context, organization_id, result)
            if context.asset_key == ACTIVE_PATIENTS_KEY and is_complete_sync(context.step_context.job_def):
                with self._database.operator() as connection:
                    scheduling.note_success(connection, organization_id, read_began_at=began_at)
        except ClinikoPipelineError as error:
            awaits_another_attempt = self._awaits_another_attempt(context, organization_id, error, credentials)
            description = f"{error}. {REFUSED_ONCE}" if awaits_another_attempt else str(error)
            self._finish_failed(context, organization_id, result, description)
            if isinstance(error, LostMatchesError):
                self._note_lost_matches(context, organization_id, str(error))
            is_permanent = error.permanent and not awaits_another_attempt
            raise failure(error, description=description, is_permanent=is_permanent) from None
        except BaseException as error:
            # A defect, or an interruption: its text may hold anything, so only its kind is kept.
            self._finish_failed(context, organization_id, result, f"The run was ended by {type(error).__name__}.")
            raise

    def _note_lost_matches(self, context: dg.OutputContext, organization_id: str, remark: str) -> None:
        """Have the check of contact_mapping fail: it is never looked at, since the rows were not written."""
        asset = dg.AssetKey("contact_mapping")
        result = CheckResult(
            organization_id, asset.to_user_string(), MATCHES_ARE_KEPT, holds=False, remark=remark, run_id=context.run_id
        )
        with self._database.operator() as connection:
            note_checks(connection, [result])
        context.step_context.instance.report_runless_asset_event(
            dg.AssetCheckEvaluation(
                asset_key=asset,
                check_name=MATCHES_ARE_KEPT,
                passed=False,
                severity=dg.AssetCheckSeverity.ERROR,
                description=remark,
                partition=organization_id,
            )
        )

    def _finish(
        self, context: dg.OutputContext, organization_id: str, result: _Result, error: str | None = None
    ) -> datetime | None:
        """Returns when the run began, where all of it has succeeded with this."""
        with self._database.organization(organization_id) as connection:
            return sync_runs.note_finished(
                connection,
                run_id=context.run_id,
                asset=context.asset_key.to_user_string(),
                counts=result.counts(),
                requests=result.cost.requests,
                seconds_waited=result.cost.seconds_waited,
                error=error,
            )

    def _awaits_another_attempt(
        self, context: dg.OutputContext, organization_id: str, error: ClinikoPipelineError, credentials: str | None
    ) -> bool:
        """Pause the organization where only its operator can help.

        Return whether that depends on another attempt: Cliniko's first refusal of a key may pass.
        """
        # Where the database is not set up, no other organization does better either, and all go on when it is.
        if not isinstance(error, CredentialsError | SettingsError):
            return False
        is_refusal = isinstance(error, AuthenticationError | PermissionDeniedError)
        try:
            with self._database.operator() as connection:
                if is_refusal and not scheduling.note_refusal(
                    connection, organization_id, run_id=context.run_id, credentials=credentials
                ):
                    return True
                scheduling.pause(
                    connection, organization_id, reason=str(error), run_id=context.run_id, credentials=credentials
                )
        except ClinikoPipelineError as secondary:
            context.log.warning("The organization could not be paused: %s", secondary)
        return False

    def _finish_failed(self, context: dg.OutputContext, organization_id: str, result: _Result, error: str) -> None:
        try:
            self._finish(context, organization_id, result, error)
        except ClinikoPipelineError as secondary:
            context.log.warning("The failure could not be noted in cliniko.sync_runs: %s", secondary)


def postgres_io_manager() -> dg.IOManagerDefinition:
    """The IO manager, on top of the resource `runtime`."""

    def made(context: dg.InitResourceContext) -> PostgresIOManager:
        runtime: Runtime = context.resources.runtime
        return PostgresIOManager(runtime)

    return dg.IOManagerDefinition(made, required_resource_keys={"runtime"}, description="Tables in PostgreSQL")


def _organization_of(context: dg.OutputContext | dg.InputContext) -> str:
    """The organization whose partition is written or read. Raises Failure where that is not one organization."""
    if (
        not context.has_partition_key
        or not context.has_asset_partitions
        or context.asset_partitions_def != ORGANIZATIONS
        or len(context.asset_partition_keys) != 1
    ):
        error = DataError(
            f"What is stored of {context.asset_key.to_user_string()} belongs to one organization: give each asset that"
            " writes or reads it partitions_def=ORGANIZATIONS (cliniko_pipeline.orchestration.partitions), and run one"
            " partition at a time."
        )
        raise failure(error)
    return context.asset_partition_key


def _is_data_frame(obj: object) -> bool:
    """Only who made one has loaded pandas, which takes a third of a second and 45 MB."""
    pandas = sys.modules.get("pandas")
    return pandas is not None and isinstance(obj, pandas.DataFrame)


def _schema_and_table(key: dg.AssetKey) -> tuple[str, str]:
    """`cliniko/patients` is cliniko.patients; the one asset with a place of its own is `contact_mapping`."""
    if key == dg.AssetKey("contact_mapping"):
        return "cliniko", "contact_mapping"
    *schema, table = key.path
    return "_".join(schema) or "public", table


def _planned(context: dg.OutputContext) -> list[str]:
    layer = context.step_context.job_def.asset_layer
    return sorted(key.to_user_string() for key in layer.selected_asset_keys)
