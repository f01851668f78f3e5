"""The four assets, each partitioned by organization: two extract from Cliniko, two compute inside PostgreSQL."""
