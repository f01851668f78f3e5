"""The IO manager that writes and reads the rows of assets, for one organization at a time."""

import sys
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import dagster as dg

from cliniko_pipeline.errors import ClinikoPipelineError, DataError, LostMatchesError
from cliniko_pipeline.orchestration.assets.values import MATCHES_ARE_KEPT, RecordStream, TableQuery, TableReference
from cliniko_pipeline.orchestration.checks.clocks import store_clock_check
from cliniko_pipeline.orchestration.partitions import ORGANIZATIONS
from cliniko_pipeline.orchestration.runs.failures import failure
from cliniko_pipeline.orchestration.runs.recomputation import is_complete_sync, is_forced, is_full
from cliniko_pipeline.orchestration.ui_metadata.tables import numbers, problems
from cliniko_pipeline.postgres.operator_tables.check_results import CheckResult, note_checks
from cliniko_pipeline.postgres.writing import crawls, derivations
from cliniko_pipeline.postgres.writing.merge import Written
from cliniko_pipeline.postgres.writing.record_batches import BatchWriter
from cliniko_pipeline.postgres.writing.sync_journal import Outcome, SyncJournal
from cliniko_pipeline.runtime import Runtime

if TYPE_CHECKING:
    import pandas as pd

CONTACT_MAPPING_KEY = dg.AssetKey("contact_mapping")
ACTIVE_PATIENTS_KEY = dg.AssetKey("active_patients")
"""The last asset of a sync."""


@dataclass(frozen=True)
class _Output:
    """The output of one asset for the run's organization."""

    organization_id: str
    schema: str
    table: str
    outcome: Outcome
    require_lock: Callable[[], None]
    is_forced: bool


class PostgresIOManager(dg.IOManager):
    """An IO manager for assets that are partitioned by organization.

    It writes a RecordStream, a TableQuery or a pandas DataFrame in the organization context. It records every output in
    `cliniko.sync_runs`.
    """

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._database = runtime.database

    def handle_output(self, context: dg.OutputContext, obj: object) -> None:
        """Write `obj`, and add the counts to the output's metadata.

        Raise Failure with a one-line description. If the error is permanent, the Failure forbids retries.
        """
        with self._recorded(context) as output:
            match obj:
                case RecordStream():
                    self._write_stream(obj, output)
                case TableQuery():
                    self._write_query(obj, output)
                case _ if _is_data_frame(obj):
                    from cliniko_pipeline.postgres.writing import frames  # noqa: PLC0415

                    frame = cast("pd.DataFrame", obj)
                    output.outcome.written = frames.write(
                        self._database, output.organization_id, output.schema, output.table, frame
                    )
                case _:
                    raise DataError(
                        f"The asset {context.asset_key.to_user_string()} returned a {type(obj).__name__}: the IO"
                        " manager writes a RecordStream, a TableQuery or a pandas DataFrame."
                    )
            metadata = self._metadata(output)
            context.add_output_metadata(metadata)  # pyright: ignore[reportUnknownMemberType] (Dagster's own)

    def load_input(self, context: dg.InputContext) -> "pd.DataFrame | TableReference":
        """Return the organization's rows, or a TableReference if the input is annotated as one."""
        schema, table = _schema_and_table(context.asset_key)
        organization_id = _organization_of(context)
        if context.dagster_type.typing_type is TableReference:
            return TableReference(f'"{schema}"."{table}"', organization_id)
        from cliniko_pipeline.postgres.writing import frames  # noqa: PLC0415

        try:
            return frames.read(self._database, organization_id, schema, table)
        except ClinikoPipelineError as error:
            raise failure(error) from None

    def _write_stream(self, stream: RecordStream, output: _Output) -> None:
        outcome = output.outcome
        outcome.records = 0
        try:
            with BatchWriter(self._database, output.organization_id, outcome.add, output.require_lock) as writer:
                for batch in stream.batches():
                    writer.write(batch)
        finally:
            outcome.cost = stream.cost()

    def _write_query(self, query: TableQuery, output: _Output) -> None:
        outcome = output.outcome
        with self._database.organization(output.organization_id) as connection:
            crawls.require_complete(connection, query.requires)
            derivation = query.derivation()
            written = derivations.write(connection, derivation, force=output.is_forced)
        outcome.written = written or Written()
        outcome.as_of = None if derivation.timing is None else derivation.timing.as_of
        if derivation.is_kept:
            outcome.is_recomputed = written is not None

    def _metadata(self, output: _Output) -> Mapping[str, Any]:
        schema, table, outcome, force = output.schema, output.table, output.outcome, output.is_forced
        with self._database.organization(output.organization_id) as connection:
            outcome.rows = derivations.row_count(connection, schema, table, force=force)
            plotted = numbers(connection, schema, table, force=force)
            wrong = problems(connection, schema, table)
        written = outcome.written
        metadata: dict[str, Any] = {
            "dagster/row_count": outcome.rows,
            **plotted,
            "rows_changed": written.inserted + written.updated + written.deleted,
            "rows_inserted": written.inserted,
            "rows_updated": written.updated,
            "rows_deleted": written.deleted,
            **wrong,
        }
        if outcome.is_recomputed is not None:
            metadata["computed_again"] = outcome.is_recomputed
        if outcome.records is not None:
            metadata |= {
                "records_read": outcome.records,
                "records_rejected": outcome.rejected,
                "requests": outcome.cost.requests,
                "requests_retried": outcome.cost.retries,
                "requests_rate_limited": outcome.cost.rate_limited,
                "seconds_waited": round(outcome.cost.seconds_waited, 1),
                **store_clock_check(self._runtime, output.organization_id, outcome.cost.clock_difference),
            }
        return metadata

    @contextmanager
    def _recorded(self, context: dg.OutputContext) -> Generator[_Output, None, None]:
        """Hold the organization lock during the block, and record the block's result in the journal."""
        organization_id = _organization_of(context)
        job, run_config = context.step_context.job_def, context.step_context.run_config
        outcome = Outcome()
        journal = SyncJournal(
            self._database,
            organization_id,
            run_id=context.run_id,
            asset=context.asset_key.to_user_string(),
            warn=context.log.warning,
        )
        try:
            journal.start(_planned(job), is_full=is_full(run_config))
            self._runtime.machine_clock().require_allowed()
            with self._database.organization_lock(organization_id) as require_lock:
                schema, table = _schema_and_table(context.asset_key)
                yield _Output(organization_id, schema, table, outcome, require_lock, is_forced(job, run_config))
            completes_sync = context.asset_key == ACTIVE_PATIENTS_KEY and is_complete_sync(job)
            journal.succeed(outcome, completes_sync=completes_sync)
        except ClinikoPipelineError as error:
            recorded = journal.fail(outcome, error)
            if isinstance(error, LostMatchesError):
                self._fail_matches_check(context, organization_id, str(error))
            raise failure(error, description=recorded.description, is_permanent=recorded.is_permanent) from None
        except BaseException as error:
            journal.interrupt(outcome, error)
            raise

    def _fail_matches_check(self, context: dg.OutputContext, organization_id: str, remark: str) -> None:
        """Report that MATCHES_ARE_KEPT failed, because Dagster runs no checks of a failed asset."""
        name = CONTACT_MAPPING_KEY.to_user_string()
        result = CheckResult(organization_id, name, MATCHES_ARE_KEPT, False, remark, context.run_id)
        with self._database.operator() as connection:
            note_checks(connection, [result])
        context.step_context.instance.report_runless_asset_event(
            dg.AssetCheckEvaluation(
                asset_key=CONTACT_MAPPING_KEY,
                check_name=MATCHES_ARE_KEPT,
                passed=False,
                severity=dg.AssetCheckSeverity.ERROR,
                description=remark,
                partition=organization_id,
            )
        )


def postgres_io_manager() -> dg.IOManagerDefinition:
    """Return the IO manager, which needs the resource `runtime`."""

    def create(context: dg.InitResourceContext) -> PostgresIOManager:
        runtime: Runtime = context.resources.runtime
        return PostgresIOManager(runtime)

    return dg.IOManagerDefinition(create, required_resource_keys={"runtime"}, description="Tables in PostgreSQL")


def _organization_of(context: dg.OutputContext | dg.InputContext) -> str:
    """Return the partition's organization. Raise Failure unless there is exactly one partition."""
    if (
        not context.has_partition_key
        or not context.has_asset_partitions
        or context.asset_partitions_def != ORGANIZATIONS
        or len(context.asset_partition_keys) != 1
    ):
        error = DataError(
            f"The asset {context.asset_key.to_user_string()} is stored by organization: set"
            " partitions_def=ORGANIZATIONS (cliniko_pipeline.orchestration.partitions) for this asset and for assets"
            " that read it, and run one partition at a time."
        )
        raise failure(error)
    return context.asset_partition_key


def _is_data_frame(obj: object) -> bool:
    # If nothing has imported pandas, `obj` is no DataFrame. The import would take a third of a second and 45 MB.
    pandas = sys.modules.get("pandas")
    return pandas is not None and isinstance(obj, pandas.DataFrame)


def _schema_and_table(key: dg.AssetKey) -> tuple[str, str]:
    """Return the asset's schema and table, such as ("cliniko", "patients")."""
    if key == CONTACT_MAPPING_KEY:  # this key lacks the schema, which is not `public`
        return "cliniko", "contact_mapping"
    *schema, table = key.path
    return "_".join(schema) or "public", table


def _planned(job: dg.JobDefinition) -> list[str]:
    return sorted(key.to_user_string() for key in job.asset_layer.selected_asset_keys)
