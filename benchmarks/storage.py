"""Benchmark of the database's size after a year of syncs, with a prune on each day.

One sync is run for real. Its rows in Dagster's and the pipeline's tables are copied by SQL for every simulated sync,
with other ids and times. Simulated are 5 of 1,000 organizations with a run every hour, so sizes are a two-hundredth.
The other 995 organizations have one sync each, before the first month, so that pages show 1,000 partitions. They have
credentials only while something is measured, because otherwise a prune would look for old syncs of each of them.
Schedules and sensors make a two-hundredth of their ticks, too.

At the end of each day, the prune runs as in the daily job, ticks are deleted as the daemon deletes them, and tables are
vacuumed by autovacuum's own rule. Autovacuum itself looks only once a minute, which is a simulated month.
"""

import argparse
import sys
import time
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from importlib import resources
from statistics import median
from typing import Any

import dagster as dg
import httpx
import sqlalchemy as sa
from dagster._core.definitions.run_request import InstigatorType
from dagster._core.scheduler.instigation import TickData, TickStatus

from benchmarks.fixtures.databases import server_version
from benchmarks.fixtures.pipelines import add_organization, opened_pipeline
from benchmarks.fixtures.processes import free_port, is_listening, started, wait_until
from benchmarks.fixtures.sandboxes import ServedAccount, sandbox_process
from benchmarks.fixtures.simulated_days import TICKS_OF_DAY, Template, add_runs, add_ticks, keep_template
from benchmarks.reporting import Benchmark, BenchmarkError, Report, Target, progress, table
from cliniko_pipeline.definitions import build_definitions
from cliniko_pipeline.orchestration.instance.home import instance_environment, open_instance
from cliniko_pipeline.orchestration.partitions import ensure_partitions
from cliniko_pipeline.orchestration.retention.dagster_tables import TABLES
from cliniko_pipeline.orchestration.retention.pruning import Prune
from cliniko_pipeline.orchestration.runs.in_process import run_sync
from cliniko_pipeline.orchestration.schedules import cliniko_syncs
from cliniko_pipeline.postgres.engine import Database
from cliniko_pipeline.postgres.operator_tables.retention import PIPELINE_TABLES
from cliniko_pipeline.runtime import Runtime
from cliniko_pipeline.sync_options import SyncOptions

DAY = timedelta(days=1)
MONTH = 30
SYNCS_A_DAY = 24
START_SECONDS = 180
REPEATS = 5
MAX_GROWTH = 1.1
MAX_SECONDS = 3.0
ASSET, RUNS, TICK = LIMITED = ("asset page", "runs page", "tick of cliniko_syncs")

BENCHMARK = Benchmark(
    measures="size of Dagster's and the pipeline's tables in a year of syncs, and the time of Dagster's pages",
    duration="ten minutes",
    targets=(
        f"sizes at month 12 / month 2: at most {MAX_GROWTH:g}, at least {1 / MAX_GROWTH:.2g}",
        f"asset page, runs page and a tick of the schedule: at most {MAX_SECONDS:g} s",
    ),
    options={
        "--organizations": (1000, "organizations, which are partitions"),
        "--synced": (5, "organizations with a run every hour"),
        "--months": (12, "simulated months of thirty days"),
    },
)

_MAKE_DUE = """
insert into cliniko.scheduling (organization_id, requested_at, full_requested_at)
select id, now() - interval '10 days', now() - interval '10 days' from unnest(cast(:ids as text[])) as id
on conflict (organization_id) do update
set requested_at = excluded.requested_at, full_requested_at = excluded.full_requested_at
"""

_ASSET = {"path": ["active_patients"]}
ASSET_PAGE = """
query($key: AssetKeyInput!, $partition: [String!]) {
  assetNodeOrError(assetKey: $key) {
    ... on AssetNode {
      partitionKeysByDimension { name partitionKeys }
      partitionStats { numMaterialized numMaterializing numPartitions numFailed }
      assetPartitionStatuses {
        ... on DefaultPartitionStatuses { materializedPartitions materializingPartitions failedPartitions }
      }
      latestMaterializationByPartition(partitions: $partition) {
        runId timestamp partition metadataEntries { label description }
      }
      assetMaterializations(limit: 1) { runId timestamp }
      assetChecksOrError {
        ... on AssetChecks {
          checks { name executionForLatestMaterialization { runId status timestamp evaluation { severity } } }
        }
      }
    }
  }
  assetsLatestInfo(assetKeys: [$key]) { id unstartedRunIds inProgressRunIds latestRun { id status endTime } }
  assetOrError(assetKey: $key) {
    ... on Asset {
      assetEventHistory(limit: 100, eventTypeSelectors: [MATERIALIZATION, OBSERVATION, FAILED_TO_MATERIALIZE]) {
        results { ... on MaterializationEvent { runId timestamp partition metadataEntries { label } } }
      }
    }
  }
}
"""
RUNS_PAGE = """
query {
  runsFeedOrError(limit: 30, filter: {}, view: ROOTS) {
    ... on RunsFeedConnection {
      cursor hasMore results { id runStatus jobName creationTime startTime endTime tags { key value } }
    }
  }
  runsFeedCountOrError(filter: {}, view: ROOTS) { ... on RunsFeedCount { count } }
}
"""
RUN_PAGE = """
query($run: ID!) {
  runOrError(runId: $run) { ... on Run { id status stepStats { stepKey status startTime endTime } tags { key value } } }
  logsForRun(runId: $run, limit: 1000) {
    ... on EventConnection { events { __typename ... on MessageEvent { message timestamp } } hasMore }
  }
}
"""


@dataclass(frozen=True)
class Checkpoint:
    """Sizes in bytes and seconds of pages, after a number of months."""

    month: int
    sizes: Mapping[str, int]
    rows: Mapping[str, int]
    seconds: Mapping[str, float]


def run(options: argparse.Namespace, report: Report) -> None:
    """Simulate the months and report sizes and times."""
    with (
        sandbox_process(100, 1000, 0.1) as sandbox,
        opened_pipeline(sandbox.account.host) as (runtime, environ),
        open_instance(runtime) as instance,
    ):
        ids = [f"clinic-{number:04}" for number in range(1, options.organizations + 1)]
        template = _prepare(runtime, instance, ids, sandbox.account)
        with _webserver(runtime, environ) as client:
            year = _Year(runtime, instance, client, template, ids, options.synced)
            checkpoints = year.simulate(options.months)
        report.show_machine(server_version(runtime.database), "dagster")
    report.show(f"A sync stores {template.events} events of {template.size / 1000:,.0f} kB.")
    _show(report, checkpoints)


def _show(report: Report, checkpoints: list[Checkpoint]) -> None:
    columns = [("after", "{}"), *((f"month {each.month}", "{}") for each in checkpoints)]
    sizes = [
        (name, *(f"{each.sizes[name] / 1e6:,.1f} MB, {each.rows[name]:,} rows" for each in checkpoints))
        for name in checkpoints[0].sizes
    ]
    seconds = [(name, *(f"{each.seconds[name]:.2f} s" for each in checkpoints)) for name in checkpoints[0].seconds]
    total = ("all tables", *(f"{_total(each) / 1e6:,.1f} MB" for each in checkpoints))
    report.show(table(columns, [*sizes, total], "Tables with their indexes"))
    report.show(table(columns, seconds, f"Pages and ticks, median of {REPEATS}"))
    second, last = next(each for each in checkpoints if each.month == min(2, checkpoints[-1].month)), checkpoints[-1]
    growth = _total(last) / _total(second)
    report.show_verdicts(
        [
            Target(f"Size after month {last.month} / month {second.month}", growth, MAX_GROWTH),
            Target("The same, lower limit", growth, 1 / MAX_GROWTH, at_least=True),
            *(Target(f"Seconds of the {name}", last.seconds[name], MAX_SECONDS) for name in LIMITED),
        ]
    )


def _total(checkpoint: Checkpoint) -> int:
    return sum(checkpoint.sizes.values())


# Simulating.


class _Year:
    """A deployment whose days are simulated from the past to now."""

    def __init__(
        self,
        runtime: Runtime,
        instance: dg.DagsterInstance,
        client: httpx.Client,
        template: Template,
        ids: list[str],
        synced: int,
    ) -> None:
        self._runtime, self._instance, self._client = runtime, instance, client
        self._template, self._ids, self._synced = template, ids, synced
        self._instigators = _instigators(build_definitions(runtime=runtime))

    def simulate(self, months: int) -> list[Checkpoint]:
        """Simulate the months; return the checkpoints after month 1, 2, 6 and the last one."""
        begin = datetime.now(UTC) - months * MONTH * DAY
        _set_idle_aside(self._runtime.database, self._ids[self._synced :], is_aside=True)
        checkpoints: list[Checkpoint] = []
        for day in range(months * MONTH):
            self._add_day(begin + day * DAY, is_first=day == 0)
            end = begin + (day + 1) * DAY
            Prune(self._runtime, self._instance, now=end).run()
            self._delete_ticks(end)
            _vacuum_as_autovacuum(self._runtime.database)
            if (day + 1) % MONTH == 0:
                month = (day + 1) // MONTH
                progress(f"Month {month} of {months}")
                if month in {1, 2, 6, months}:
                    checkpoints.append(self._checkpoint(month, end))
        return checkpoints

    def _add_day(self, begin: datetime, *, is_first: bool) -> None:
        database, synced = self._runtime.database, self._ids[: self._synced]
        if is_first:
            add_runs(database, self._template, begin - DAY, DAY, self._ids)
        add_runs(database, self._template, begin, DAY, synced * SYNCS_A_DAY)
        add_ticks(database, begin, DAY, TICKS_OF_DAY * self._synced // len(self._ids))

    def _delete_ticks(self, now: datetime) -> None:
        """Delete old ticks as the daemon does after each tick."""
        for name, type_ in self._instigators:
            kept = self._instance.get_tick_retention_settings(type_)
            for days in set(kept.values()) - {-1}:
                statuses = [status for status in kept if kept[status] == days]
                self._instance.purge_ticks(name, name, (now - days * DAY).timestamp(), statuses)

    def _checkpoint(self, month: int, now: datetime) -> Checkpoint:
        tables = [*(f"dagster.{name}" for name in TABLES), *PIPELINE_TABLES]
        with self._runtime.database.operator() as connection:
            sizes = {
                name: connection.execute(sa.text("select pg_total_relation_size(:name)"), {"name": name}).scalar_one()
                for name in tables
            }
            rows = {
                name: connection.execute(sa.text(f"select count(*) from {name}")).scalar_one()  # noqa: S608 (constants)
                for name in tables
            }
            last = connection.execute(sa.text("select run_id from dagster.runs order by id desc limit 1")).scalar_one()
        key = {"key": _ASSET, "partition": self._ids[:1]}
        _set_idle_aside(self._runtime.database, self._ids[self._synced :], is_aside=False)
        seconds = {
            ASSET: _seconds(lambda: self._query(ASSET_PAGE, key)),
            RUNS: _seconds(lambda: self._query(RUNS_PAGE, {})),
            "page of a run": _seconds(lambda: self._query(RUN_PAGE, {"run": last})),
            TICK: _seconds(self._tick),
            "prune without old rows": _seconds(Prune(self._runtime, self._instance, now=now).run),
        }
        _set_idle_aside(self._runtime.database, self._ids[self._synced :], is_aside=True)
        return Checkpoint(month, sizes, rows, seconds)

    def _query(self, query: str, variables: Mapping[str, Any]) -> None:
        answer = self._client.post("/graphql", json={"query": query, "variables": variables}).json()
        if "errors" in answer:
            raise BenchmarkError(f"Dagster answered {str(answer)[:1000]}")

    def _tick(self) -> None:
        """Evaluate the schedule of syncs, with full syncs of all organizations due, which need no probes."""
        with self._runtime.database.operator() as connection:
            connection.execute(sa.text(_MAKE_DUE), {"ids": self._ids})
        context = dg.build_schedule_context(
            self._instance, scheduled_execution_time=datetime.now(UTC), resources={"runtime": self._runtime}
        )
        requests = cliniko_syncs.evaluate_tick(context).run_requests or []
        if len(requests) != len(self._ids):
            raise BenchmarkError(f"the tick requested {len(requests)} runs")


def _prepare(runtime: Runtime, instance: dg.DagsterInstance, ids: list[str], account: ServedAccount) -> Template:
    """Add the organizations, sync the first one twice, and keep the second sync as the template."""
    progress(f"Adding {len(ids)} organizations")
    for organization_id in ids:
        patients = account.patient_ids if organization_id == ids[0] else ()
        add_organization(runtime, organization_id, account.api_key, account.api_url, patients)
    ensure_partitions(instance, ids)
    definitions = build_definitions(runtime=runtime)
    run_id = ""
    for _ in range(2):
        result = run_sync(definitions, instance, runtime, ids[0], SyncOptions())
        if result.error is not None:
            raise BenchmarkError(f"the first sync failed: {result.error}")
        run_id = result.run_id
    _add_ticks(instance, definitions)
    return keep_template(runtime.database, run_id, ids[0])


def _add_ticks(instance: dg.DagsterInstance, definitions: dg.Definitions) -> None:
    """Store one skipped tick of each schedule and sensor, and a tick that requested runs."""
    for name, type_ in _instigators(definitions):
        statuses = [TickStatus.SKIPPED, *([TickStatus.SUCCESS] if name == cliniko_syncs.name else [])]
        for status in statuses:
            instance.create_tick(
                TickData(
                    name,
                    name,
                    type_,
                    status,
                    time.time(),
                    run_ids=[],
                    run_keys=[],
                    selector_id=name,
                    skip_reason="None of 1000 organizations is due." if status == TickStatus.SKIPPED else None,
                    end_timestamp=time.time(),
                )
            )


def _instigators(definitions: dg.Definitions) -> list[tuple[str, InstigatorType]]:
    repository = definitions.get_repository_def()
    return [
        *((schedule.name, InstigatorType.SCHEDULE) for schedule in repository.schedule_defs),
        *((sensor.name, InstigatorType.SENSOR) for sensor in repository.sensor_defs),
    ]


@contextmanager
def _webserver(runtime: Runtime, environ: Mapping[str, str]) -> Generator[httpx.Client]:
    """Run Dagster's webserver while the block runs. Yield a client of it."""
    port, home = free_port(), runtime.settings.dagster_home
    environment = {**environ, **instance_environment(runtime), "PYTHONWARNINGS": "ignore"}
    with resources.as_file(resources.files("cliniko_pipeline") / "orchestration" / "workspace.yaml") as workspace:
        address = ("--host", "127.0.0.1", "--port", str(port))
        module = "cliniko_pipeline.orchestration.webserver"
        command = [sys.executable, "-m", module, "--workspace", str(workspace), *address]
        with (
            started(command, environment, home / "webserver.log"),
            httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client,
        ):
            wait_until(lambda: is_listening(port), START_SECONDS, "Dagster's webserver")
            yield client


def _set_idle_aside(database: Database, ids: list[str], *, is_aside: bool) -> None:
    """Hide the credentials of these organizations from the pipeline, or show them again."""
    with database.operator() as connection:
        connection.execute(
            sa.text("update public.api_credentials set service_name = :name where organization_id = any(:ids)"),
            {"name": "set aside" if is_aside else "cliniko", "ids": ids},
        )


def _vacuum_as_autovacuum(database: Database) -> None:
    """Vacuum the tables with as many dead rows as autovacuum waits for by default."""
    with database.operator_statement() as connection:
        found = connection.execute(
            sa.text(
                "select relid::regclass::text from pg_stat_user_tables"
                " where schemaname in ('dagster', 'cliniko') and n_dead_tup > 50 + 0.2 * n_live_tup"
            )
        ).scalars()
        for name in list(found):
            connection.execute(sa.text(f"vacuum analyze {name}"))


def _seconds(action: Callable[[], object]) -> float:
    taken: list[float] = []
    for _ in range(REPEATS):
        begin = time.perf_counter()
        action()
        taken.append(time.perf_counter() - begin)
    return median(taken)
