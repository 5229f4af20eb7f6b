"""Within one module's tests, each signature is checked once: thousands of cases share the same records."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.strategies import memoised_signature_checks


@pytest.fixture(scope="module", autouse=True)
def signature_checks_are_memoised() -> Iterator[None]:
    with memoised_signature_checks():
        yield
