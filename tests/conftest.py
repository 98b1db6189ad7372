"""What all tests share: hypothesis draws the same examples on every machine and in every run."""

from hypothesis import settings

settings.register_profile("deterministic", derandomize=True, database=None, deadline=None)
settings.load_profile("deterministic")
