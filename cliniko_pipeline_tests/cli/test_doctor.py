"""`cliniko-pipeline doctor`: passed and failed checks."""

from cliniko_pipeline.postgres.operator_tables import scheduling
from cliniko_pipeline.sandbox.faults import Faults, RefusedField
from cliniko_pipeline_tests.support.clinics import Clinics
from cliniko_pipeline_tests.support.processes import CommandLine, assert_refused


def test_doctor_reports_a_revoked_key(command: CommandLine, clinics: Clinics) -> None:
    empty = command("doctor")
    assert empty.returncode == 0
    assert "organizations add" in empty.stdout
    account = clinics.add("alpha")
    clinics.add("beta")
    assert command("doctor").stdout.count("✓") == 12
    account.revoked = True
    examined = command("doctor")
    assert examined.returncode == 1
    assert "✗ Cliniko accepts the key of 'alpha'" in examined.stdout
    assert "✓ Cliniko accepts the key of 'beta'" in examined.stdout
    assert account.bare_key not in examined.stdout


def test_doctor_does_not_advise_itself(command: CommandLine, clinics: Clinics) -> None:
    clinics.add("alpha")
    clinics.sandbox.faults = Faults(server_error_rate=1.0)
    examined = command("doctor")
    assert "✗ Cliniko accepts the key of 'alpha'" in examined.stdout
    assert "doctor" not in examined.stdout


def test_doctor_reports_lost_isolation_and_migrate_restores_it(command: CommandLine, clinics: Clinics) -> None:
    with clinics.database.operator() as connection:
        connection.exec_driver_sql("alter table cliniko.patients no force row level security")
    examined = command("doctor")
    assert examined.returncode == 1
    assert "✗ Organizations are kept apart" in examined.stdout
    assert "cliniko.patients" in examined.stdout
    assert "Repaired the isolation of organizations" in command("migrate").stdout
    assert command("doctor").returncode == 0


def test_doctor_and_status_report_missing_organizations(command: CommandLine, clinics: Clinics) -> None:
    clinics.add("alpha")
    with clinics.database.operator() as connection:
        scheduling.note_success(connection, "alpha")
        connection.exec_driver_sql("delete from public.api_credentials")
    examined = command("doctor")
    assert examined.returncode == 1
    assert "✗ No organization has lost its credentials\n  There are no Cliniko credentials" in examined.stdout
    assert_refused(command("status"), "some organizations (alpha)", "`cliniko-pipeline organizations remove ID`")


def test_doctor_names_organizations_with_the_same_key(command: CommandLine, clinics: Clinics) -> None:
    """Whoever can write the application's table can copy the credentials of another organization."""
    clinics.add("alpha")
    clinics.add("beta")
    assert "same API key" not in command("doctor").stdout
    with clinics.database.operator() as connection:
        connection.exec_driver_sql(
            "update public.api_credentials as copy set credentials_encrypted = original.credentials_encrypted"
            " from public.api_credentials as original"
            " where copy.organization_id = 'beta' and original.organization_id = 'alpha'"
        )
    assert "! The organizations alpha, beta have the same API key" in command("doctor").stdout


def test_doctor_and_status_name_refused_fields(command: CommandLine, clinics: Clinics) -> None:
    clinics.add("alpha")
    clinics.sandbox.faults = Faults(refused_fields=(RefusedField("id", "sort", resource="patients"),))
    assert command("sync", "alpha").returncode == 0
    refusal = "alpha: Cliniko refuses to sort patients by id: "
    assert f"! {refusal}" in command("doctor").stdout
    assert refusal in command("status").stdout
