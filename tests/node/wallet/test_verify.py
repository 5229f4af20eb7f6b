"""The wallet's own judgement: a receipt proves one record, whole, in one federation."""

from __future__ import annotations

import pytest

from node.wallet.verify import verify_final
from protocol.errors import InvalidInput


@pytest.fixture
def record(federation):
    return federation.declare("Students")


def test_a_receipt_proves_its_record(federation, record):
    assert verify_final({0: federation.charter}, federation.receipt(record.id), record.encoded).record == record


def test_every_changed_byte_of_a_receipt_proves_nothing(federation, record):
    receipt = federation.receipt(record.id)
    for position in range(len(receipt)):
        changed = bytearray(receipt)
        changed[position] ^= 1
        with pytest.raises(InvalidInput):
            verify_final({0: federation.charter}, bytes(changed), record.encoded)


def test_a_receipt_does_not_serve_another_record(federation, record):
    other = federation.declare("Others")
    with pytest.raises(InvalidInput, match="another record"):
        verify_final({0: federation.charter}, federation.receipt(other.id), record.encoded)


def test_a_receipt_does_not_serve_another_federation(federation, record, make_federation):
    stranger = make_federation("Stranger", b"o" * 16)
    with pytest.raises(InvalidInput):
        verify_final({0: stranger.charter}, federation.receipt(record.id), record.encoded)
