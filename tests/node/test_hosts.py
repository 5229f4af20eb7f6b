"""A host is written in one way, whoever writes it."""

from __future__ import annotations

import pytest

from node.errors import UserError
from node.hosts import parse_host


@pytest.mark.parametrize("text", ["pypi.org:443", "192.0.2.1:80", "[2001:db8::1]:80", "a_b:1"])
def test_a_host_is_written_as_it_was_read(text):
    assert str(parse_host(text)) == text
    assert parse_host(text.upper()) == parse_host(text)


@pytest.mark.parametrize(
    "text",
    ["", "pypi.org", "pypi.org:", "pypi.org:0", "pypi.org:65536", "*:443", "a b:1", "http://a:1", "a:1\n", "-a:1"],
)
def test_what_is_no_host_is_told_in_one_line(text):
    with pytest.raises(UserError, match="is no host"):
        parse_host(text)
