"""The choice of credits: what expires soonest goes first, and nothing unusable is touched."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from node.errors import UserError
from node.wallet.lots import Lot, choose_lots, is_expired

PROGRAM = b"p" * 32
OTHER = b"q" * 32


def always(lot):
    return True


def test_what_expires_soonest_goes_first_and_free_credits_last():
    lots = {Lot(b"", 0): 100, Lot(PROGRAM, 9): 10, Lot(OTHER, 3): 5}
    assert choose_lots(lots, 20, 1, always, "sent") == [(Lot(OTHER, 3), 5), (Lot(PROGRAM, 9), 10), (Lot(b"", 0), 5)]


def test_a_lot_lives_through_its_last_epoch():
    lots = {Lot(PROGRAM, 3): 10}
    assert choose_lots(lots, 10, 3, always, "sent") == [(Lot(PROGRAM, 3), 10)]
    with pytest.raises(UserError, match=r"0\.000 can be sent; 0\.010 have expired"):
        choose_lots(lots, 10, 4, always, "sent")


def test_bound_credits_are_named_as_the_reason_when_the_rest_does_not_suffice():
    lots = {Lot(PROGRAM, 3): 7000, Lot(b"", 0): 1000}
    with pytest.raises(UserError, match=r"1\.000 can be sent; 7\.000 more belong to programs"):
        choose_lots(lots, 2000, 1, lambda lot: not lot.program, "sent")


def test_more_lots_than_a_record_can_name_are_refused():
    lots = {Lot(PROGRAM, expiry): 1 for expiry in range(1, 6)}
    assert len(choose_lots(lots, 5, 1, always, "sent", count_max=5)) == 5
    with pytest.raises(UserError, match="split the amount"):
        choose_lots(lots, 5, 1, always, "sent", count_max=4)


_LOTS = st.dictionaries(
    st.builds(Lot, st.sampled_from([b"", PROGRAM, OTHER]), st.integers(0, 6)), st.integers(1, 50), max_size=8
)


@given(_LOTS, st.integers(1, 200), st.integers(1, 6))
def test_the_parts_add_up_and_never_exceed_a_lot(lots, amount, epoch):
    usable = sum(part for lot, part in lots.items() if not is_expired(lot, epoch))
    if usable < amount:
        with pytest.raises(UserError):
            choose_lots(lots, amount, epoch, always, "sent")
        return
    chosen = choose_lots(lots, amount, epoch, always, "sent")
    assert sum(part for _, part in chosen) == amount
    assert len({lot for lot, _ in chosen}) == len(chosen)
    assert all(0 < part <= lots[lot] and not is_expired(lot, epoch) for lot, part in chosen)
    whole = [lot for lot, part in chosen[:-1]]
    assert all(dict(chosen)[lot] == lots[lot] for lot in whole)
