"""What all tests share: hypothesis draws the same examples on every machine and in every run, however slow."""

from hypothesis import HealthCheck, settings
from hypothesis.internal.conjecture import providers

settings.register_profile(
    "deterministic", derandomize=True, database=None, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("deterministic")

# It would also draw constants from the modules that happen to be imported, which differ from process to process
vars(providers)["is_local_module_file"] = lambda _path: False
