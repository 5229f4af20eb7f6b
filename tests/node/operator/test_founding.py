"""Founding: what founders sign is what they read, and a missing or wrong signature is told by name."""

from pathlib import Path

import msgspec
import pytest

from node.config import Federation
from node.errors import UserError
from node.operator.founding import (
    Draft,
    FounderSignature,
    compose_draft,
    compute_summary,
    join_signatures,
    open_draft,
    read_document,
    sign_draft,
    write_document,
)
from protocol.signatures import SMALL_ORDER_Y
from tests.node.operator.institution import make_card, make_keys, make_options

HERE = Path("charter.json")


@pytest.fixture(scope="module")
def draft():
    return compose_draft([make_card(number) for number in (1, 2, 3, 4)], make_options(weights={"Member 2": 1}))


def sign(draft, number):
    return sign_draft(open_draft(draft, HERE), *make_keys(number))


def test_four_founders_make_a_federation(draft):
    charter = open_draft(draft, HERE)
    federation = join_signatures(draft, charter, [sign(draft, number) for number in (4, 2, 3, 1)])
    founded = federation.decode()
    assert founded.charter.fields == charter.fields
    assert [member.name for member in founded.charter.fields.members] == [f"Member {n}" for n in (1, 2, 3, 4)]
    assert federation.addresses["Member 3"] == "/ip4/127.0.0.1/tcp/4003"


def test_documents_survive_their_files(draft, tmp_path):
    for name, document in (("c", make_card(1)), ("d", draft), ("s", sign(draft, 1))):
        write_document(tmp_path / name, document)
        assert read_document(tmp_path / name, type(document), "document") == document
        with pytest.raises(UserError, match="exists already"):
            write_document(tmp_path / name, document)


def test_the_summary_says_who_may_do_what(draft):
    text = "\n".join(compute_summary(open_draft(draft, HERE), draft.addresses))
    assert draft.federation in text
    assert "weight 3 of 4" in text
    assert "Member 4: weight 1, may grant 1000000.000 credits an epoch" in text


def test_a_missing_signature_is_told_by_name(draft):
    with pytest.raises(UserError, match="not yet signed by Member 2, Member 4"):
        join_signatures(draft, open_draft(draft, HERE), [sign(draft, 1), sign(draft, 3)])


def test_a_signature_under_another_draft_is_told_by_name(draft):
    other = compose_draft([make_card(number) for number in (1, 2, 3, 4)], make_options(epochs=3))
    signatures = [sign(draft, 1), sign(draft, 2), sign(other, 3), sign(draft, 4)]
    with pytest.raises(UserError, match="Member 3 signed another draft"):
        join_signatures(draft, open_draft(draft, HERE), signatures)


def test_a_forged_or_a_strangers_signature_is_told_by_name(draft):
    charter = open_draft(draft, HERE)
    forged = FounderSignature(draft.federation, "Member 2", sign(draft, 1).signature)
    with pytest.raises(UserError, match="signature of Member 2 does not hold"):
        join_signatures(draft, charter, [forged])
    with pytest.raises(UserError, match="Mallory signed, but is no founder"):
        join_signatures(draft, charter, [FounderSignature(draft.federation, "Mallory", bytes(64))])


@pytest.mark.parametrize("key", ["member", "vote", "peer"])
def test_a_founder_signs_only_with_all_three_keys_in_the_draft(draft, key):
    keys = dict(zip(("member", "vote", "peer"), make_keys(1), strict=True))
    keys[key] = make_keys(9)[0]
    with pytest.raises(UserError, match=f"{key} key"):
        sign_draft(open_draft(draft, HERE), *keys.values())


def test_a_draft_that_shows_something_else_than_its_bytes_is_refused(draft):
    other = compose_draft([make_card(number) for number in (1, 2, 3, 4)], make_options(cap_millicredits=1))
    for tampered in (
        msgspec.structs.replace(draft, encoded=other.encoded),
        msgspec.structs.replace(draft, terms=other.terms),
        msgspec.structs.replace(draft, acceptable_use="Anything goes"),
        msgspec.structs.replace(draft, federation=other.federation),
    ):
        with pytest.raises(UserError, match="not what would be signed"):
            open_draft(tampered, HERE)
    with pytest.raises(UserError, match="one network address for each"):
        open_draft(msgspec.structs.replace(draft, addresses={}), HERE)
    with pytest.raises(UserError, match="no valid charter"):
        open_draft(msgspec.structs.replace(draft, encoded=b"\x90"), HERE)


@pytest.mark.parametrize(
    ("cards", "options", "told"),
    [
        ([make_card(1)], {}, "--dev"),
        ([make_card(n) for n in (1, 2, 3, 4)], {"weights": {"Member 1": 5}}, "block alone"),
        ([make_card(n) for n in (1, 2, 3, 4)], {"weights": {"Nobody": 5}}, "Nobody"),
        ([make_card(n) for n in (1, 1, 2, 3)], {}, "key of its own"),
        ([make_card(n, "Same") for n in (1, 2, 3, 4)], {}, "one name"),
        ([make_card(1, "a\x1b[2J")], {"is_dev": True}, "is no name"),
        ([make_card(1)], {"is_dev": True, "cap_millicredits": 2**53 - 1}, "lower --cap"),
        ([make_card(1)], {"is_dev": True, "name": " x"}, "is no name"),
    ],
)
def test_no_draft_comes_of_founders_or_options_that_do_not_fit(cards, options, told):
    with pytest.raises(UserError, match=told):
        compose_draft(cards, make_options(**options))


def test_a_founder_with_a_weak_key_is_refused():
    weak = SMALL_ORDER_Y[1].to_bytes(32, "little")
    card = msgspec.structs.replace(make_card(1), member_key=weak)
    with pytest.raises(UserError, match="prime order"):
        compose_draft([card], make_options(is_dev=True))


def test_a_file_of_another_kind_is_told(draft, tmp_path):
    write_document(tmp_path / "card.json", make_card(1))
    with pytest.raises(UserError, match=r"card.json is no draft"):
        read_document(tmp_path / "card.json", Draft, "draft")


def test_a_federation_file_must_match_its_document(draft):
    charter = open_draft(draft, HERE)
    good = join_signatures(draft, charter, [sign(draft, number) for number in (1, 2, 3, 4)])
    with pytest.raises(UserError, match="another federation"):
        Federation(good.founded, "almf1wrong", {}).decode()
    with pytest.raises(UserError, match="no valid founding document"):
        Federation(good.founded[:-1], good.federation, {}).decode()
