"""The settings of one process: the only reader of the environment.

`fields` has the variables by group, `validators` and `database_urls` what a valid value is, and `key_file` the
encryption key of the embedded database. Nothing is read before `load_settings` is called.
Messages name the variable and never show its value: a secret is easily pasted into the wrong one.
"""

from cliniko_pipeline.settings.loading import Settings, load_settings
from cliniko_pipeline.settings.validators import KEY_COMMAND, time_of_day

__all__ = ["KEY_COMMAND", "Settings", "load_settings", "time_of_day"]
