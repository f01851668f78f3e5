"""The Dagster side: partitions, resources, the IO manager, assets and jobs.

The only folder, besides `definitions.py`, that imports Dagster. No module here may use
`from __future__ import annotations`: Dagster reads the annotations.
"""
