"""The Dagster definitions, such as assets, checks, jobs, schedules and sensors.

Only this folder and `definitions.py` import Dagster. No module here may use `from __future__ import annotations`,
because Dagster reads the annotations.
"""
