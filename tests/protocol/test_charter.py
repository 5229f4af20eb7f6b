"""The charter: its rules, its founding, its epochs."""

from __future__ import annotations

from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.charter import (
    Charter,
    CharterFields,
    Member,
    Rate,
    compute_quorum,
    decode_charter,
    decode_founded_charter,
    found_charter,
)
from protocol.codec import encode
from protocol.credits import AMOUNT_MAX
from protocol.errors import InvalidInput
from protocol.limits import CHARTER_BYTES_MAX, RECORD_BYTES_MAX
from tests.protocol.test_signatures import MIXED_KEY
from tests.strategies import Federation, make_federation, make_public_key

FEDERATION = make_federation()
FIELDS = FEDERATION.charter.fields


def change_member(place: int, **changes: Any) -> CharterFields:
    members = list(FIELDS.members)
    members[place] = members[place]._replace(**changes)
    return FIELDS._replace(members=tuple(members))


def test_a_charter_decodes_to_itself():
    decoded = decode_charter(FEDERATION.charter.encoded)
    assert decoded.fields == FIELDS
    assert decoded.encoded == FEDERATION.charter.encoded
    assert decoded.federation == FEDERATION.id
    assert (decoded.total_weight, decoded.quorum) == (4, 3)


BROKEN_RULES = {
    "members out of order": FIELDS._replace(members=FIELDS.members[::-1]),
    "a member twice": FIELDS._replace(members=(*FIELDS.members, FIELDS.members[-1])),
    "one number twice": change_member(1, number=1),
    "one name twice": change_member(1, name="Institution 1"),
    "one key twice": change_member(1, vote_key=FIELDS.members[0].vote_key),
    "one key for two purposes": change_member(0, vote_key=FIELDS.members[0].member_key),
    "a member key of small order": change_member(0, member_key=bytes(32)),
    "a vote key of mixed order": change_member(0, vote_key=MIXED_KEY),
    "a peer key that is no point": change_member(0, peer_key=(2).to_bytes(32, "little")),
    "three members": FIELDS._replace(members=FIELDS.members[:3]),
    "no members": FIELDS._replace(members=()),
    "a member that could block alone": change_member(0, weight=2),
    "rates out of order": FIELDS._replace(rates=(Rate("b", 1), Rate("a", 1))),
    "a device twice": FIELDS._replace(rates=(Rate("a", 1), Rate("a", 2))),
    "a predecessor at genesis": FIELDS._replace(prev=bytes(32)),
    "no predecessor later": FIELDS._replace(version=1),
    "bounds the wrong way round": FIELDS._replace(
        policy=FIELDS.policy._replace(hold_grace_seconds_max=60, hold_grace_seconds_min=61)
    ),
    "more money than can be counted": change_member(0, issuance_caps=(AMOUNT_MAX,)),
    "ceilings beyond counting": change_member(0, backing_ceiling=AMOUNT_MAX // 120 + 1),
    "a member of no weight": change_member(0, weight=0),
    "an epoch of a second": FIELDS._replace(epoch_seconds=1),
    "a dev mark of 2": FIELDS._replace(is_dev=2),
    "all of the work counts": FIELDS._replace(policy=FIELDS.policy._replace(backing_permille=1000)),
}


@pytest.mark.parametrize("fields", BROKEN_RULES.values(), ids=BROKEN_RULES.keys())
def test_a_charter_that_breaks_a_rule_is_refused(fields):
    with pytest.raises(InvalidInput):
        decode_charter(fields.encode())


@pytest.mark.parametrize("weights", [(1,), (1, 1), (1, 1, 1), (5, 1)])
def test_a_dev_charter_needs_everybody(weights):
    federation = Federation(weights, name="Small", is_dev=True)
    assert federation.charter.quorum == sum(weights)
    with pytest.raises(InvalidInput):
        Federation(weights, name="Small")


@given(st.lists(st.integers(1, 50), min_size=4, max_size=9))
def test_no_accepted_member_can_block_or_forge_alone(weights):
    try:
        charter = Federation(weights, name="Any").charter
    except InvalidInput:
        quorum = compute_quorum(sum(weights))
        assert max(weights) > sum(weights) - quorum
        return
    for weight in weights:
        assert charter.total_weight - weight >= charter.quorum
        assert weight < charter.quorum


def test_the_founding_document_holds_every_founders_signature():
    founded = FEDERATION.found()
    decoded = decode_founded_charter(founded.encode())
    assert decoded.charter.federation == FEDERATION.id
    assert decoded.signatures == founded.signatures
    assert decoded.encode() == founded.encode()


def test_a_founding_document_lacks_nobody_and_holds_nobody_else():
    signatures = dict(FEDERATION.found().signatures)
    for number in signatures:
        fewer = {other: signature for other, signature in signatures.items() if other != number}
        with pytest.raises(InvalidInput, match="not signed"):
            found_charter(FEDERATION.charter, fewer)
        with pytest.raises(InvalidInput, match="not for this charter"):
            found_charter(FEDERATION.charter, signatures | {number: signatures[number % 4 + 1]})
    with pytest.raises(InvalidInput, match="no founder"):
        found_charter(FEDERATION.charter, signatures | {5: signatures[1]})


def test_another_federations_signatures_found_nothing():
    other = make_federation((1, 1, 1, 1), "Elsewhere")
    signatures = {number: key.sign(other.id) for number, key in FEDERATION.member_keys.items()}
    with pytest.raises(InvalidInput):
        found_charter(FEDERATION.charter, signatures)


def test_the_founders_signatures_have_one_order():
    charter, signatures = msgpack.unpackb(FEDERATION.found().encode(), use_list=False)
    for wrong in (signatures[::-1], signatures + signatures[-1:], signatures[:3]):
        with pytest.raises(InvalidInput):
            decode_founded_charter(encode((charter, wrong)))


def test_a_later_charter_is_not_founded():
    later = Charter(FIELDS._replace(version=1, prev=bytes(32)), FEDERATION.id)
    with pytest.raises(InvalidInput, match="genesis"):
        decode_founded_charter(encode((later.encoded, FEDERATION.found().signatures)))


@pytest.mark.parametrize("first", [b"\x91" * 700 + b"\x90", b"\x05", b"\xc7\x00\x05", b"\xc0", b"\x80"])
def test_a_founding_document_that_starts_with_something_else_is_refused(first):
    signatures = encode(FEDERATION.found().signatures)
    with pytest.raises(InvalidInput):
        decode_founded_charter(b"\x92" + first + signatures)


def test_accounts_of_members_and_issuance_are_all_different():
    charter = FEDERATION.charter
    accounts = {*charter.member_accounts, *charter.issuance_accounts}
    assert len(accounts) == 4 + 4 * 120
    assert charter.issuance_accounts[charter.get_issuance_account(3, 7)] == (3, 7)
    assert charter.members_by_key[make_public_key("Testland member 2")] == 2


def test_a_later_version_belongs_to_the_federation_and_has_an_id_of_its_own():
    fields = FIELDS._replace(version=1, prev=FEDERATION.id)
    later = Charter(fields, FEDERATION.id)
    assert decode_charter(later.encoded, FEDERATION.id).id == later.id != FEDERATION.id
    assert later.federation == FEDERATION.id
    assert later.id != Charter(fields, bytes(32)).id
    assert later.get_issuance_account(1, 1) == FEDERATION.charter.get_issuance_account(1, 1)
    for wrong, federation in ((fields, b""), (FIELDS, FEDERATION.id)):
        with pytest.raises(InvalidInput):
            Charter(wrong, federation)


CAPS = st.lists(st.integers(0, 3) | st.integers(0, 10**9), max_size=120).map(tuple)


@given(CAPS)
def test_caps_have_one_encoding_whatever_their_runs(caps):
    fields = change_member(0, issuance_caps=caps)
    decoded = decode_charter(fields.encode())
    trimmed = list(caps)
    while trimmed and trimmed[-1] == 0:
        trimmed.pop()
    assert decoded.fields.members[0].issuance_caps == tuple(trimmed)
    assert decoded.fields.encode() == decoded.encoded == fields.encode()


@pytest.mark.parametrize(
    "runs", [((1, 5), (1, 5)), ((2, 5), (1, 0)), ((1, 0),), ((0, 5),), ((121, 5),), ((60, 1), (61, 2)), ((1,),)]
)
def test_runs_that_say_the_same_in_another_way_or_too_much_are_refused(runs):
    raw = list(msgpack.unpackb(FEDERATION.charter.encoded, use_list=False))
    raw[9] = ((*raw[9][0][:6], runs, raw[9][0][7]), *raw[9][1:])
    with pytest.raises(InvalidInput):
        decode_charter(encode(tuple(raw)))


def test_a_charter_of_a_hundred_members_fits_one_record():
    members = tuple(
        Member(
            number,
            f"University of Town No. {number}",
            make_public_key(f"member {number}"),
            make_public_key(f"vote {number}"),
            make_public_key(f"peer {number}"),
            1,
            (10**9,) * 60 + (2 * 10**9,) * 60,
            10**9,
        )
        for number in range(1, 101)
    )
    rates = tuple(Rate(f"Some device {number:03}", 1000) for number in range(200))
    encoded = FIELDS._replace(members=members, rates=rates).encode()
    assert CHARTER_BYTES_MAX * 3 // 4 < len(encoded) <= CHARTER_BYTES_MAX < RECORD_BYTES_MAX


def test_a_charter_that_no_record_could_amend_is_refused():
    rates = tuple(Rate(f"{number:064}", 1000) for number in range(400))
    with pytest.raises(InvalidInput, match="bytes"):
        Charter(FIELDS._replace(rates=rates))


def make_next(**changes: Any) -> Charter:
    following: dict[str, Any] = {"version": 1, "prev": FEDERATION.id}
    return Charter(FIELDS._replace(**(following | changes)), FEDERATION.id)


ALLOWED_CHANGES: dict[str, dict[str, Any]] = {
    "nothing": {},
    "keys, name and weight": {
        "members": change_member(
            0,
            name="Renamed",
            member_key=make_public_key("a"),
            vote_key=make_public_key("b"),
            peer_key=make_public_key("c"),
        ).members
    },
    "a higher cap": {"members": change_member(0, issuance_caps=(1_000_000, 1_000_001, 1_000_000)).members},
    "another epoch": {"members": change_member(0, issuance_caps=(1_000_000,) * 4).members},
    "a higher ceiling": {"members": change_member(0, backing_ceiling=401).members},
    "rates": {"rates": ()},
    "the grace after an epoch": {"epoch_grace_seconds": 0},
}


@pytest.mark.parametrize("changes", ALLOWED_CHANGES.values(), ids=ALLOWED_CHANGES.keys())
def test_much_of_a_charter_may_change(changes):
    FEDERATION.charter.check_successor(make_next(**changes))


FORBIDDEN_CHANGES: dict[str, dict[str, Any]] = {
    "another predecessor": {"prev": bytes(32)},
    "a version left out": {"version": 2},
    "another name": {"name": "Elsewhere"},
    "another nonce": {"nonce": bytes(16)},
    "another genesis time": {"genesis_seconds": 5},
    "another length of an epoch": {"epoch_seconds": 7200},
    "a dev mark": {"is_dev": 1},
    "a lower cap": {"members": change_member(0, issuance_caps=(1_000_000, 999_999, 1_000_000)).members},
    "a cap left out": {"members": change_member(0, issuance_caps=(1_000_000, 1_000_000)).members},
    "a lower ceiling": {"members": change_member(0, backing_ceiling=399).members},
}


@pytest.mark.parametrize("changes", FORBIDDEN_CHANGES.values(), ids=FORBIDDEN_CHANGES.keys())
def test_what_holds_for_ever_does_not_change(changes):
    with pytest.raises(InvalidInput):
        FEDERATION.charter.check_successor(make_next(**changes))


def test_a_dev_mark_may_be_dropped_once_there_are_enough_members():
    small = Federation((1, 1, 1, 1), name="Small", is_dev=True)
    fields = small.charter.fields._replace(version=1, prev=small.id, is_dev=0)
    small.charter.check_successor(Charter(fields, small.id))


def test_an_amendment_of_another_federation_is_refused():
    other = make_federation((1, 1, 1, 1), "Elsewhere")
    with pytest.raises(InvalidInput):
        FEDERATION.charter.check_successor(Charter(make_next().fields, other.id))


def test_epochs_count_from_one_and_grace_keeps_the_one_before_open():
    charter = FEDERATION.charter
    start = FIELDS.genesis_seconds
    assert [charter.compute_epoch(start + at) for at in (-5000, 0, 3599, 3600, 7200)] == [1, 1, 1, 2, 3]
    assert charter.compute_open_epochs(start) == range(1, 2)
    assert charter.compute_open_epochs(start + 3600) == range(1, 3)
    assert charter.compute_open_epochs(start + 3659) == range(1, 3)
    assert charter.compute_open_epochs(start + 3660) == range(2, 3)
    assert charter.compute_open_epochs(start - 100) == range(1, 2)


@given(st.integers(0, 2**40), st.integers(0, 2**32))
def test_at_most_two_epochs_are_open_whatever_the_grace(now, grace):
    charter = Federation(name="Grace").charter
    charter.fields = charter.fields._replace(epoch_grace_seconds=grace)
    epochs = charter.compute_open_epochs(now)
    assert epochs[-1] == charter.compute_epoch(now)
    assert 1 <= len(epochs) <= 2
    assert epochs[0] >= 1


@pytest.mark.parametrize(("total", "quorum"), [(4, 3), (5, 4), (6, 5), (7, 5), (10, 7), (100, 67)])
def test_the_quorum_is_two_thirds_and_a_bit(total, quorum):
    assert compute_quorum(total) == quorum
    assert compute_quorum(total, is_dev=True) == total
