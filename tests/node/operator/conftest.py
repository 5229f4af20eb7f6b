"""A federation of one that runs in the test's process."""

import pytest

from tests.node.operator.institution import Institution


@pytest.fixture
async def institution(tmp_path, nursery):
    institution = Institution(tmp_path, nursery)
    yield institution
    institution.scope.cancel()
