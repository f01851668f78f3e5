"""The settings of one process. Only this package reads them from environment variables.

`fields` defines the variables by group, `validators` and `database_urls` check their values, and `key_file` manages the
encryption key of the embedded database. Nothing is read before `load_settings` is called. Messages show the name of a
variable and never its value, because a secret is easily pasted into the wrong variable.
"""

from cliniko_pipeline.settings.loading import Settings, load_settings
from cliniko_pipeline.settings.validators import KEY_COMMAND, time_of_day

__all__ = ["KEY_COMMAND", "Settings", "load_settings", "time_of_day"]
