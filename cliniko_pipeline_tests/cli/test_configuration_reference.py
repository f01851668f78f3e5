"""docs/configuration.md against the settings."""

from pathlib import Path

from cliniko_pipeline.cli.configuration_reference import render
from cliniko_pipeline.settings import Settings

PAGE = Path(__file__).parents[2] / "docs" / "configuration.md"


def test_configuration_page_equals_the_settings() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert page == render(), "run `make configuration`"
    for field in Settings.model_fields.values():
        assert f"| `{field.validation_alias}` | " in page
