"""Tests that names from the database are shown without control characters."""

from cliniko_pipeline_tests.support.clinics import Clinics
from cliniko_pipeline_tests.support.processes import CommandLine


def test_names_reach_the_terminal_without_control_characters(command: CommandLine, clinics: Clinics) -> None:
    clinics.add("alpha")
    with clinics.database.operator() as connection:
        connection.exec_driver_sql(r"update public.organizations set name = E'Evil\x1b]52;c;Y3Vy\x07\x1b[2K[bold]'")
    for arguments in (["organizations", "list"], ["status"]):
        shown = command(*arguments).stdout
        assert "Evil" in shown
        assert "[bold]" in shown
        assert not any(character in shown for character in "\x1b\x07")
