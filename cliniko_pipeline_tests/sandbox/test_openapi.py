"""Tests of the sandbox's responses against Cliniko's OpenAPI file, which is not part of this project.

The demo has no empty strings in place of nulls here, because the file does not allow them.
"""

import ipaddress
import json
import os
import re
import uuid
from datetime import date, datetime
from pathlib import Path

import jsonschema
import pytest

from cliniko_pipeline.sandbox.accounts.generated import generated_account
from cliniko_pipeline.sandbox.resources import RESOURCES, FieldKind
from cliniko_pipeline.sandbox.server import running_sandbox
from cliniko_pipeline_tests.support.sandboxes import ANCHOR, EVERYTHING, demo

FILE = os.environ.get("CLINIKO_OPENAPI_FILE")
if not FILE:
    pytest.skip(
        "set CLINIKO_OPENAPI_FILE to Cliniko's published OpenAPI file to check the sandbox against it",
        allow_module_level=True,
    )

FORMATS = jsonschema.FormatChecker(formats=())
CHECKS = {
    "date-time": lambda value: (
        re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", value) and datetime.fromisoformat(value)
    ),
    "date": date.fromisoformat,
    "uri": lambda value: re.fullmatch(r"https?://[^ /]+(/[^ ]*)?", value),
    "int64": lambda value: re.fullmatch(r"[0-9]+", value) and int(value) < 2**63,
    "float": lambda value: float(value) is not None,
    "ipv4": ipaddress.IPv4Address,
    "uuid": uuid.UUID,
    "phone": lambda value: re.fullmatch(r"[0-9 +()-]+", value),
}
for name, check in CHECKS.items():
    # Formats apply only to strings.
    FORMATS.checks(name, raises=ValueError)(lambda value, check=check: not isinstance(value, str) or bool(check(value)))


def json_schema(node):
    """Convert OpenAPI 3.0's dialect to a JSON Schema that refuses unknown fields."""
    if isinstance(node, list):
        return [json_schema(one) for one in node]
    if not isinstance(node, dict):
        return node
    schema = {name: json_schema(value) for name, value in node.items() if name != "example"}
    if isinstance(schema.get("properties"), dict) and schema.get("type") == "object":
        schema["additionalProperties"] = False
    if "A-Z0-9!" in str(schema.get("pattern")):
        # The pattern of e-mail addresses assumes that case is ignored.
        schema["pattern"] = schema["pattern"].replace("A-Z", "A-Za-z")
    return nullable(exclusive_bounds(schema))


def exclusive_bounds(schema):
    for bound, exclusive in (("minimum", "exclusiveMinimum"), ("maximum", "exclusiveMaximum")):
        if isinstance(schema.get(exclusive), bool) and schema.pop(exclusive):
            schema[exclusive] = schema.pop(bound)
    return schema


def nullable(schema):
    if schema.pop("nullable", False) is True:
        schema["type"] = [schema["type"], "null"]
        if "enum" in schema:
            schema["enum"] = [*schema["enum"], None]
    return schema


@pytest.fixture(scope="module")
def published():
    return json.loads(Path(FILE).read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def components(published):
    return json_schema({"components": {"schemas": published["components"]["schemas"]}})


def validator(components, schema):
    return jsonschema.Draft202012Validator({**components, **json_schema(schema)}, format_checker=FORMATS)


def response_schema(published, path):
    return published["paths"][path]["get"]["responses"]["200"]["content"]["application/json"]["schema"]


@pytest.fixture(scope="module")
def accounts():
    accounts = [one.account for one in demo(empty_strings_for_nulls=False)]
    return [*accounts, generated_account(30, 200, 1, ANCHOR, 0.3)]


@pytest.fixture(scope="module")
def served(accounts):
    with running_sandbox(accounts) as sandbox:
        yield sandbox


@pytest.mark.parametrize("resource", list(RESOURCES))
def test_answers_match_the_published_schema(published, components, accounts, served, calling, resource):
    """The first, middle and last page of each list are checked, and records of the last page."""
    listed = validator(components, response_schema(published, f"/{resource}"))
    single = validator(components, response_schema(published, f"/{resource}/{{id}}"))
    filters = [one for one in EVERYTHING if one.split(":")[0] in RESOURCES[resource].fields]
    for account in accounts:
        caller = calling(served, account)
        total = caller.get(f"/{resource}", *filters, per_page=1).json()["total_entries"]
        last = max(1, -(-total // 100))
        for page in sorted({1, (1 + last) // 2, last}):
            body = caller.get(f"/{resource}", *filters, page=page, per_page=100).json()
            errors = [f"{one.json_path}: {one.message[:200]}" for one in listed.iter_errors(body)]
            assert not errors
        assert "next" not in body["links"]
        for one in body[resource][:3]:
            single.validate(caller.get(f"/{resource}/{one['id']}", *filters).json())


def test_schema_refuses_unknown_fields_and_wrong_types(published, components, accounts):
    single = validator(components, response_schema(published, "/patients/{id}"))
    (patient, *_) = accounts[0].wire_records("patients", "http://127.0.0.1/au4/v1")
    single.validate(patient)
    wrong = ({"invented": 1}, {"id": 82}, {"archived_at": ""}, {"email": ""}, {"created_at": None})
    for change in wrong:
        assert not single.is_valid({**patient, **change}), change


@pytest.mark.parametrize("resource", list(RESOURCES))
def test_filterable_fields_are_the_published_ones(published, resource):
    kinds = {
        "int64": FieldKind.NUMBER,
        "date-time": FieldKind.DATE_TIME,
        "date": FieldKind.DATE,
        "string": FieldKind.TEXT,
        "boolean": FieldKind.BOOLEAN,
        "array": FieldKind.ARRAY,
    }
    parameters = published["paths"][f"/{resource}"]["get"]["parameters"]
    (described,) = [one["description"] for one in parameters if one.get("name") == "q[]"]
    rows = re.findall(r"\| (\w+) \| \[([\w-]+)\]", described)
    assert RESOURCES[resource].fields == {name: kinds[kind] for name, kind in rows}
