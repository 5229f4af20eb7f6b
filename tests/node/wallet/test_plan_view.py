"""The plan as a person reads it: what it says of ends and money is what the rules say."""

from __future__ import annotations

import pytest

from node.wallet.jobs import ANY_MACHINE, plan_job
from node.wallet.matching import DonorScore, Preference
from node.wallet.plan_view import END_MEANINGS, describe_due, describe_plan, describe_reliability, iterate_plan
from protocol.metering import END_STATES, REFUND_TABLE_VERSION, Rate, compute_amount_due, sign_tick
from tests.node.wallet.scripted_donor import DONOR

COLUMNS_MAX = 120
LINES_MAX = 40


@pytest.fixture
def plan(wallet, stage, write_job):
    """A plan, with its job file's name and secrets, for so many machines."""

    def make(count=3, choice=ANY_MACHINE, **fields):
        for number in range(count):
            stage.add(f"machine-{number}", "refuse", weight=1000 + number, hosts=("example.org:443",))
        spec = write_job(**fields)
        return plan_job(wallet, spec, choice), spec.name, spec.secrets

    return make


def test_the_table_of_ends_has_them_all_and_says_what_the_rules_charge():
    rate = Rate(1000, 1, 1, 0)
    saved = sign_tick(b"f" * 32, DONOR, b"h" * 32, rate, None, 60_000, b"c" * 32)
    last = sign_tick(b"f" * 32, DONOR, b"h" * 32, rate, saved, 120_000)
    assert set(END_MEANINGS) == END_STATES
    for state in END_STATES:
        due = compute_amount_due(REFUND_TABLE_VERSION, state, last, saved)
        assert describe_due(state).startswith("the time that it ran" if due == last.amount else "up to the last checkp")


@pytest.mark.parametrize("fields", [{}, {"network": "true", "secrets": "{TOKEN: x, CODE: y}", "max_duration": "59m"}])
@pytest.mark.parametrize("count", [1, 3, 60])
def test_a_plan_fits_on_one_screen(wallet, plan, fields, count):
    lines = list(iterate_plan(wallet, *plan(count, **fields)))
    assert len(lines) <= LINES_MAX
    assert max(map(len, lines)) <= COLUMNS_MAX


def test_a_plan_says_who_vouches_what_is_risked_and_who_is_asked_next(wallet, plan):
    text = "\n".join(iterate_plan(wallet, *plan(network="true", secrets="{TOKEN: x}")))
    assert "Hochschule (yours)" in text
    assert "if it refuses: machine-1, then machine-2 (up to 6.263 credits)" in text
    assert "nothing but example.org:443" in text
    assert "the secrets TOKEN" in text
    assert "of Students, good until" in text
    assert "3.750 credits a minute" in text


def test_a_plan_for_programs_has_the_same_and_no_secret_value(wallet, plan):
    document = describe_plan(wallet, *plan(secrets="{TOKEN: hush-hush}"))
    assert [offer["machine"] for offer in document["offers"]] == ["machine-0", "machine-1", "machine-2"]
    assert document["offers"][0]["institution"] == "Hochschule"
    assert document["offers"][0]["is_local"] is True
    assert {refund["end"] for refund in document["refunds"]} == set(END_STATES)
    assert document["secrets"] == ["TOKEN"]
    assert "hush-hush" not in str(document)


def test_a_person_may_name_the_donor_or_what_counts_first(wallet, plan):
    made, _, _ = plan(choice=ANY_MACHINE._replace(donor="machine-2"))
    assert [match.offer.machine for match in made.matches] == ["machine-2"]
    made, _, _ = plan(0, choice=ANY_MACHINE._replace(prefer=Preference.PRICE))
    assert made.priced.offer.machine == "machine-0"


def test_what_is_known_of_a_donor_is_told_with_what_it_rests_on():
    assert describe_reliability(DonorScore(987, 120)) == "987 of 1000, 120 jobs"
    assert "not known" in describe_reliability(DonorScore(500, 0))
