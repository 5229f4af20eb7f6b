"""Who may use a donor's machine: its lists, the use policy, and limits that hold for several jobs side by side."""

from __future__ import annotations

from datetime import UTC, datetime

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from node import api
from node.addresses import Kind, encode_address
from node.donor.acceptance import (
    check_request,
    check_start,
    describe_payer,
    is_use_policy_accepted,
    list_institutions,
)
from node.donor.earnings import JobEntry, Use, compute_use, sum_earnings
from node.donor.job_file import Institution
from node.donor.settings import Settings
from protocol.errors import Reason, Rejected
from protocol.quotes import QuoteRequest
from protocol.records import Draw
from tests.strategies import make_federation

CHARTER = make_federation().charter
CHARTERS = {0: CHARTER}
ACCOUNT, STRANGER = b"a" * 32, b"b" * 32
PROGRAM, COURSE = b"p" * 32, b"q" * 32
UNI, COLLEGE = Institution(1, "University A"), Institution(2, "College B")
SETTINGS = Settings("http://node", "bench", 8, 10**10, 10**10, ["batch"], [])
NOON = datetime(2026, 11, 23, 12, tzinfo=UTC)
UNUSED = Use(0, 0, 0)
REQUEST = QuoteRequest(
    ACCOUNT, b"", b"", b"", 4, 10**9, 10**9, 1, 0, 3600, b"", "batch", b"m" * 32, b"n" * 32, b""
)  # fmt: skip


def name(kind, identifier):
    return encode_address(kind, identifier)


def make_account(lots=((PROGRAM, 5000),), enrolled_by=(UNI,), until_epoch=0):
    return api.Account(
        name(Kind.ACCOUNT, ACCOUNT),
        7,
        0,
        None,
        sum(amount for _, amount in lots),
        [api.Lot(name(Kind.PROGRAM, program) if program else None, "", 9, amount) for program, amount in lots],
        [api.Enrolment("", found.number, until_epoch, found.name) for found in enrolled_by],
        [],
    )


def find_refusal(request=REQUEST, account=None, use=UNUSED, amount_max=1000, charters=CHARTERS, local=NOON, **settings):
    """The reason and the words, or nothing."""
    prefs = msgspec.structs.replace(SETTINGS, **settings)
    try:
        check_request(prefs, charters, request, amount_max, account or make_account(), use, local)
    except Rejected as rejection:
        reason, detail = rejection.reason, rejection.detail
    else:
        return None
    assert detail.isprintable()
    assert 0 < len(detail) <= 200
    return reason, detail


def test_without_preferences_everybody_who_can_pay_may_use_it():
    assert find_refusal() is None
    assert find_refusal(account=make_account(enrolled_by=())) is None
    assert find_refusal(amount_max=5001)[0] is Reason.FUNDS_MISSING


@pytest.mark.parametrize("who", [name(Kind.ACCOUNT, ACCOUNT), "University A", "1"])
def test_an_account_is_denied_and_allowed_by_itself_and_by_who_vouches_for_it(who):
    assert find_refusal(deny=[who])[0] is Reason.POLICY
    assert find_refusal(allow=[who]) is None
    assert find_refusal(allow=[who], deny=["College B"], account=make_account(enrolled_by=(UNI, COLLEGE)))


def test_with_a_list_nobody_else_is_allowed():
    for who in (name(Kind.ACCOUNT, STRANGER), "College B", "2"):
        assert find_refusal(allow=[who])[0] is Reason.POLICY
        assert find_refusal(deny=[who]) is None


def test_an_institution_that_a_person_has_left_vouches_no_more():
    gone = make_account(until_epoch=6)
    assert list_institutions(gone) == []
    assert list_institutions(make_account(until_epoch=7)) == [UNI]
    assert find_refusal(account=gone, allow=["University A"])[0] is Reason.POLICY
    assert "University A" in describe_payer(ACCOUNT, [UNI])
    assert "no institution" in describe_payer(ACCOUNT, [])


def test_a_program_stands_for_its_credits_and_not_for_the_account():
    both = make_account(((PROGRAM, 800), (COURSE, 5000)))
    course = name(Kind.PROGRAM, COURSE)
    assert find_refusal(account=both, allow=[course]) is None
    assert find_refusal(account=both, deny=[course]) == (
        Reason.POLICY,
        "the donor takes credits of other programs only",
    )
    assert find_refusal(account=both, deny=[course], amount_max=800) is None
    assert find_refusal(account=make_account(((COURSE, 5000), (b"", 9)), ()), allow=[course], deny=["1"]) is None
    assert find_refusal(account=make_account(((b"", 5000),)), allow=[course])[0] is Reason.POLICY


def test_a_start_must_draw_on_credits_that_are_taken():
    prefs = msgspec.structs.replace(SETTINGS, deny=[name(Kind.PROGRAM, COURSE)])
    check_start(prefs, ACCOUNT, [UNI], [Draw(PROGRAM, 9, 1000)], 1000, UNUSED)
    with pytest.raises(Rejected, match="takes no credits of almp1"):
        check_start(prefs, ACCOUNT, [UNI], [Draw(PROGRAM, 9, 500), Draw(COURSE, 9, 500)], 1000, UNUSED)
    prefs = msgspec.structs.replace(SETTINGS, deny=["College B"])
    with pytest.raises(Rejected, match="no jobs of this account"):
        check_start(prefs, ACCOUNT, [COLLEGE], [Draw(PROGRAM, 9, 1000)], 1000, UNUSED)


@pytest.mark.parametrize(
    ("limit", "words"),
    [
        ({"job_cores_max": 3}, "3 cores"),
        ({"job_memory_bytes_max": 10**8}, "bytes of memory"),
        ({"job_credits_max": 1}, "one job here may cost 1 credits"),
        ({"wall_seconds_max": 3599}, "3599 s"),
        ({"account_credits_max": 1}, "one account may use"),
        ({"epoch_credits_max": 1}, "all may use"),
    ],
)
def test_each_limit_is_told_in_words(limit, words):
    reason, detail = find_refusal(amount_max=1001, **limit)
    assert (reason, words in detail) == (Reason.LIMIT_EXCEEDED, True)
    assert find_refusal(amount_max=1001, **{setting: 100 * value for setting, value in limit.items()}) is None


def test_jobs_must_end_while_the_machine_is_lent():
    assert find_refusal(hours=["mon 11:00-13:00"]) is None
    assert "30 minutes" in find_refusal(hours=["mon 11:00-12:30"])[1]


def test_a_new_use_policy_stops_everything_until_the_owner_accepts_it():
    policy = CHARTER.policy._replace(acceptable_use=b"n" * 32)
    amended = type(CHARTER)(CHARTER.fields._replace(policy=policy))
    charters = {0: CHARTER, 1: amended}
    assert is_use_policy_accepted(SETTINGS, CHARTERS)
    assert find_refusal(charters=charters)[0] is Reason.POLICY
    assert find_refusal(charters=charters, acceptable_use=policy.acceptable_use.hex()) is None
    assert find_refusal(acceptable_use=policy.acceptable_use.hex())[0] is Reason.POLICY


# -- what was used ------------------------------------------------------------------------------------------------


def entry(number, account=ACCOUNT, millicredits=100, epoch=0, is_open=False):
    return JobEntry(str(number), account, (UNI,), "", "", 0, is_open, epoch, millicredits)


def test_open_jobs_count_with_what_they_may_cost_and_settled_ones_in_their_epoch():
    entries = [
        entry(1, is_open=True, millicredits=700),
        entry(2, epoch=7, millicredits=50),
        entry(3, epoch=6, millicredits=10_000),
        entry(4, STRANGER, epoch=7, millicredits=5),
        entry(5, STRANGER, is_open=True, millicredits=2000),
        entry(6),
    ]
    assert compute_use(entries, ACCOUNT, 7) == Use(1, 750, 2755)
    assert compute_use(entries, ACCOUNT, 7, but="1") == Use(0, 50, 2055)
    assert [tuple(line) for line in sum_earnings(entries)] == [(7, 2, 55), (6, 1, 10_000)]


@given(st.lists(st.tuples(st.booleans(), st.integers(1, 3000)), max_size=40), st.integers(1, 6), st.integers(1, 4))
def test_whatever_is_asked_for_in_whatever_order_no_limit_is_passed(asked, credits_max, jobs_max):
    """Jobs are started when they are let in, and end at some time for what they were quoted at most."""
    prefs = msgspec.structs.replace(SETTINGS, account_credits_max=credits_max, account_jobs_max=jobs_max)
    entries: list[JobEntry] = []
    for number, (is_first_ended, amount) in enumerate(asked):
        if is_first_ended and entries:
            entries[0] = entries[0]._replace(is_open=False, epoch=7)
            entries = entries[1:] + entries[:1]
        try:
            use = compute_use(entries, ACCOUNT, 7)
            check_request(prefs, CHARTERS, REQUEST, amount, make_account(((PROGRAM, 10**6),)), use, NOON)
            check_start(prefs, ACCOUNT, [UNI], [Draw(PROGRAM, 9, amount)], amount, use)
        except Rejected:
            continue
        entries.append(entry(number, is_open=True, millicredits=amount))
        assert sum(one.millicredits for one in entries) <= credits_max * 1000
        assert sum(one.is_open for one in entries) <= jobs_max
