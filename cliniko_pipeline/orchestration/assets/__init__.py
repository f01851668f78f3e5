"""The four assets, partitioned by organization: two extract from Cliniko, two are computed in PostgreSQL."""
