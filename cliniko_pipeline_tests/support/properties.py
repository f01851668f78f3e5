"""Numbers of examples for property tests. The profile `thorough` of the slow tests has more examples."""

import os

from hypothesis import settings

settings.register_profile("default", deadline=None, print_blob=True, max_examples=50)
settings.register_profile("thorough", settings.get_profile("default"), max_examples=500)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))
THOROUGH = settings.default == settings.get_profile("thorough")


def examples(quick: int, thorough: int | None = None) -> int:
    """Return the number of examples for the current profile. `thorough` defaults to ten times the quick number."""
    if not THOROUGH:
        return quick
    return 10 * quick if thorough is None else thorough
