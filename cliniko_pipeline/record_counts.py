"""The comparison of the numbers of stored records with Cliniko's numbers, by one request for each resource."""

from dataclasses import dataclass
from typing import Any

from cliniko_pipeline.cliniko.client import ClinikoClient
from cliniko_pipeline.cliniko.records import Resource
from cliniko_pipeline.errors import FieldRefusedError
from cliniko_pipeline.postgres.engine import Database
from cliniko_pipeline.postgres.writing import crawls
from cliniko_pipeline.postgres.writing.crawls import StoredCount


@dataclass(frozen=True)
class Comparison:
    """The number of records of a resource, stored and in Cliniko.

    Attributes:
        passed: whether the numbers agree, or need not be compared.
        remark: why the numbers were not compared, or what a difference leads to. Empty if the numbers agree.
        total: the number in Cliniko, or None if it is not known.
    """

    resource: str
    passed: bool
    remark: str = ""
    stored: StoredCount | None = None
    total: int | None = None


def compare(database: Database, organization_id: str, client: ClinikoClient, resource: Resource[Any]) -> Comparison:
    """Compare the numbers of records created before the last crawl; raise the errors of ClinikoClient.crawl."""
    name = resource.name
    with database.organization(organization_id) as connection:
        state = crawls.read_states(connection).get(name)
        if state is None or not state.is_complete or state.cursor is None:
            return Comparison(name, passed=False, remark="its last crawl is incomplete; sync it first")
        if state.is_partial:
            return Comparison(name, passed=True, remark="not compared, since there was no group appointment")
        stored = crawls.count_stored(connection, state)
    client.refusals.remember(name, state.refused_fields)
    try:
        total = client.total_entries(resource, created_before=state.cursor)
    except FieldRefusedError as error:
        return Comparison(name, passed=True, remark=f"not compared, since {error}", stored=stored)
    agrees = stored.agrees_with(total)
    return Comparison(name, agrees, "" if agrees else "the next sync reads it in full", stored, total)
