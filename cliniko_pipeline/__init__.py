"""Active patients of many Cliniko clinics, kept current in your own PostgreSQL by Dagster."""
