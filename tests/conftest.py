"""Hypothesis profiles: `ci` (the default) always generates the same cases, `thorough` looks for new ones.

    scripts/test --hypothesis-profile=thorough

A failing property prints a `@reproduce_failure` line: put it above the test to replay the case.
"""

from __future__ import annotations

from hypothesis import HealthCheck, settings

# deadline: a slow machine is no wrong result. too_slow: generating whole ledgers takes its time.
settings.register_profile(
    "ci",
    derandomize=True,
    database=None,
    deadline=None,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.register_profile(
    "thorough",
    max_examples=5000,
    deadline=None,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("ci")
