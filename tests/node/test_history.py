"""Everybody whom a record touches finds it in the own history, newest first, page by page."""

from node.history import AccountHistory
from protocol.ledger import Ledger
from scripts.benchmarks.federation_in_memory import Cast


def test_payer_and_payee_find_a_payment_and_pages_join_without_a_gap():
    cast = Cast(4, 2)
    cast.make_setup()
    ledger = Ledger(cast.founded.charter)
    history = AccountHistory()
    expected: list[bytes] = []
    for _ in range(5):
        for payment in cast.make_payments():
            history.note(payment, ledger)
            expected.insert(0, payment.id)
    for account in cast.accounts:
        first, before = history.read(account, None, 4)
        second, before = history.read(account, before, 4)
        third, end = history.read(account, before, 4)
        assert first + second + third == expected
        assert end is None


def test_an_unknown_account_has_an_empty_history():
    assert AccountHistory().read(bytes(32), None, 10) == ([], None)
