"""Capacity model: machines, storage and limits for a number of organizations, from measured costs.

Nothing is measured here. The options are the results of the benchmarks `probes`, `runs` and `storage`, by default those
of docs/benchmarks.md. All organizations are due every hour. In some of them something has changed. All full syncs begin
within `--full-hours` hours of a night.
"""

import argparse
import math
from dataclasses import dataclass

from benchmarks.reporting import Benchmark, Report, table

SIZES = (100, 1_000, 10_000, 100_000)
USED_SHARE = 0.7
"""The share of the CPU time to plan with. The rest is for first syncs, the application and peaks."""

BENCHMARK = Benchmark(
    measures="nothing: it computes cores, storage and limits for 100 to 100,000 organizations",
    duration="no time",
    targets=(),
    needs_linux=False,
    options={
        "--changed": (0.1, "share of the organizations in which something has changed within an hour"),
        "--pages": (20, "pages of 100 records of an organization"),
        "--full-hours": (4.0, "hours over which the nightly full syncs are spread"),
        "--probe-cpu": (0.008, "CPU seconds of a probe, PostgreSQL's included"),
        "--run-cpu": (2.1, "CPU seconds of a run, with its share of the daemon, the code server and PostgreSQL"),
        "--page-cpu": (0.007, "CPU seconds to read and write a page"),
        "--daemon-cpu": (0.19, "CPU seconds of the daemon and the code server for each run"),
        "--probes-a-tick": (690, "probes of one tick, which has 15 s, if Cliniko answers after 100 ms"),
        "--event-kilobytes": (88.0, "kB of Dagster's events of a new run"),
        "--kept-kilobytes": (43.0, "kB that are left after three days"),
        "--details-days": (3, "days until the details of events are deleted"),
        "--runs-days": (30, "days until runs are deleted"),
    },
)


@dataclass(frozen=True)
class Load:
    """The load of a number of organizations. CPU seconds and runs are those of an hour."""

    organizations: int
    runs_by_day: float
    runs_by_night: float
    cpu_by_day: float
    cpu_by_night: float
    event_gigabytes: float

    @property
    def cores(self) -> int:
        """The cores that the busiest hour needs."""
        return max(1, math.ceil(max(self.cpu_by_day, self.cpu_by_night) / 3600 / USED_SHARE))


def load(organizations: int, costs: argparse.Namespace) -> Load:
    """Return the load of the organizations at these costs."""
    changed = organizations * costs.changed
    full = organizations / costs.full_hours
    probes = organizations * costs.probe_cpu
    a_day = 24 * changed + organizations
    kept_days = max(0, costs.runs_days - costs.details_days)
    kilobytes = costs.event_kilobytes * costs.details_days + costs.kept_kilobytes * kept_days
    return Load(
        organizations,
        runs_by_day=changed,
        runs_by_night=full,
        cpu_by_day=probes + changed * (costs.run_cpu + costs.page_cpu),
        cpu_by_night=probes + full * (costs.run_cpu + costs.pages * costs.page_cpu),
        event_gigabytes=a_day * kilobytes / 1e6,
    )


def run(options: argparse.Namespace, report: Report) -> None:
    """Compute and report."""
    loads = [load(size, options) for size in SIZES]
    columns = [
        ("organizations", "{:,}"),
        ("runs an hour by day", "{:,.0f}"),
        ("by night", "{:,.0f}"),
        ("CPU seconds an hour by day", "{:,.0f}"),
        ("by night", "{:,.0f}"),
        ("cores", "{}"),
        ("GB of events", "{:,.1f}"),
    ]
    rows = [
        (
            each.organizations,
            each.runs_by_day,
            each.runs_by_night,
            each.cpu_by_day,
            each.cpu_by_night,
            each.cores,
            each.event_gigabytes,
        )
        for each in loads
    ]
    report.show(table(columns, rows))
    report.show(
        f"One daemon and one code server take at most {3600 / options.daemon_cpu:,.0f} runs an hour, and"
        f" {60 * options.probes_a_tick:,} probes an hour."
    )
