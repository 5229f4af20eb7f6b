"""The rate table: the reference is 1000, the formula decides, a federation may bring its own."""

import json

import pytest

from node.errors import UserError
from node.operator.rates import (
    REFERENCE_DEVICE,
    Specification,
    compute_default_rates,
    compute_weight,
    read_rates,
)
from protocol.charter import Rate


def test_the_reference_gpu_weighs_one_thousand():
    assert dict(compute_default_rates())[REFERENCE_DEVICE] == 1000


def test_the_weight_is_the_geometric_mean_of_the_three_ratios():
    assert compute_weight(Specification(2 * 312, 2 * 2039, 2 * 80)) == 2000
    assert compute_weight(Specification(8 * 312, 2039, 80)) == 2000
    assert compute_weight(Specification(0.001, 0.001, 0.001)) == 1


def test_the_default_table_is_in_the_order_that_charters_want():
    rates = compute_default_rates()
    assert list(rates) == sorted(rates)
    assert len({rate.device for rate in rates}) == len(rates) > 40


def test_a_table_of_ones_own_is_read(tmp_path):
    (tmp_path / "rates.json").write_text(json.dumps({"L4": 258, "A40": 461}))
    assert read_rates(tmp_path / "rates.json") == (Rate("A40", 461), Rate("L4", 258))


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("L4 = 3", "no JSON"),
        ("[1]", "one JSON object"),
        ('{"L4": 1.5}', "weight of L4"),
        ('{"L4": true}', "weight of L4"),
        ('{"L4": 0}', "weight of L4"),
        ('{"": 1}', "device's name"),
        ("[" * 100_000, "no JSON"),
    ],
)
def test_a_wrong_table_is_refused_in_one_line(tmp_path, text, told):
    (tmp_path / "rates.json").write_text(text)
    with pytest.raises(UserError, match=told):
        read_rates(tmp_path / "rates.json")
