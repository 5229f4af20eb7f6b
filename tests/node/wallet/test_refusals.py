"""What a person reads when a node refuses a record."""

from __future__ import annotations

import pytest

from node.wallet.refusals import describe_refusal
from protocol.errors import Reason, Rejected

INTERNAL = ("slot", "attempt", "round", "introduc", "predecessor", "reference", "frontier")


@pytest.mark.parametrize("reason", list(Reason), ids=lambda reason: reason.name)
def test_a_refusal_is_one_line_without_words_that_only_the_rules_use(reason):
    said = describe_refusal(Rejected(reason))
    assert said
    assert "\n" not in said
    assert not any(word in said for word in INTERNAL)


def test_a_refusal_that_says_it_all_is_left_in_the_rules_own_words():
    assert (
        describe_refusal(Rejected(Reason.LOT_EXPIRED, "these credits expired")) == "lot expired: these credits expired"
    )
