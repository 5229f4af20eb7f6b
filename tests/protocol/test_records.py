"""Records: what is well-formed, what the id covers, and that signatures belong to one record of one federation."""

from __future__ import annotations

import msgpack
import pytest

from protocol.causes import get_named_records, get_outgoing
from protocol.codec import Shape, binary, encode, items, list_of, optional_binary, text, uint
from protocol.credits import AMOUNT_MAX
from protocol.errors import InvalidInput
from protocol.identifiers import (
    Tag,
    compute_account_id,
    compute_id,
    compute_issuance_account_id,
    compute_voucher_id,
)
from protocol.limits import EPOCH_MAX, OUTPUTS_MAX, PROTOCOL_VERSION, RECORD_BYTES_MAX, SIGNERS_MAX
from protocol.records import (
    FREE_LOT,
    NONE,
    Draw,
    Kind,
    Lot,
    Output,
    Record,
    RecordDraft,
    account_scope,
    decode_record,
    has_valid_signatures,
    hold_scope,
    person_scope,
    sign_record,
)
from tests.strategies import make_economy, make_federation, make_id, make_records_of_every_kind

FEDERATION = make_federation()
ECONOMY = make_economy(FEDERATION)
ALICE, BOB = ECONOMY.people
RECORDS = make_records_of_every_kind(FEDERATION)
BY_KIND = {Kind(record.kind): record for record in reversed(RECORDS)}
TRANSFER = BY_KIND[Kind.TRANSFER]


def change(record: Record, place: int, value: object) -> bytes:
    """The record's encoding with another value at one place."""
    raw = list(msgpack.unpackb(record.encoded, use_list=False))
    raw[place] = value
    return encode(tuple(raw))


def test_the_economy_holds_a_record_of_every_kind():
    assert set(BY_KIND) == set(Kind)


@pytest.mark.parametrize("record", RECORDS, ids=lambda record: Kind(record.kind).name.lower())
class TestEveryKind:
    def test_it_decodes_to_what_was_signed_and_encodes_again(self, record):
        decoded = decode_record(FEDERATION.id, record.encoded)
        assert decoded == record
        draft = RecordDraft(
            Kind(decoded.kind),
            decoded.epoch,
            decoded.scope,
            decoded.sequence,
            decoded.prev,
            decoded.body,
            decoded.signers,
        )
        assert draft.assemble(FEDERATION.id, decoded.signatures).encoded == record.encoded
        assert has_valid_signatures(decoded)

    def test_the_id_covers_all_but_the_signatures(self, record):
        unsigned, tail = record.encoded[: -len(record.signature_tail)], record.signature_tail
        assert msgpack.unpackb(tail, use_list=False) == record.signatures
        assert record.id == compute_id(Tag.RECORD, FEDERATION.id, unsigned)
        other = decode_record(FEDERATION.id, record.encoded[:-1] + bytes([record.encoded[-1] ^ 1]))
        assert other.id == record.id
        assert not has_valid_signatures(other)

    def test_a_signature_is_for_one_federation(self, record):
        if record.kind == Kind.AMEND:
            with pytest.raises(InvalidInput, match="own charter"):
                decode_record(make_id("another federation"), record.encoded)
            return
        elsewhere = decode_record(make_id("another federation"), record.encoded)
        assert elsewhere.id != record.id
        assert not has_valid_signatures(elsewhere)

    def test_every_changed_byte_is_refused_or_breaks_a_signature(self, record):
        for place in range(len(record.encoded)):
            changed = bytearray(record.encoded)
            changed[place] ^= 1
            try:
                decoded = decode_record(FEDERATION.id, bytes(changed))
            except InvalidInput:
                continue
            assert not has_valid_signatures(decoded), place

    def test_a_missing_or_added_byte_is_refused(self, record):
        for encoded in (record.encoded[:-1], record.encoded + b"\0", record.encoded[1:], b""):
            with pytest.raises(InvalidInput):
                decode_record(FEDERATION.id, encoded)

    def test_it_stands_in_a_scope_of_one_kind_only(self, record):
        for kind in (0, 1, 2, 3, 4, 5, 255):
            if kind != record.scope[0]:
                with pytest.raises(InvalidInput):
                    decode_record(FEDERATION.id, change(record, 3, bytes([kind]) + record.account))

    def test_the_body_of_another_kind_is_refused_or_breaks_a_signature(self, record):
        twins = {Kind.ENROL, Kind.LEAVE}  # of one shape: the kind is under the signatures
        for kind in range(16):
            if {kind, record.kind} == twins:
                assert not has_valid_signatures(decode_record(FEDERATION.id, change(record, 1, kind)))
            elif kind != record.kind:
                with pytest.raises(InvalidInput):
                    decode_record(FEDERATION.id, change(record, 1, kind))

    def test_it_has_its_number_of_signers_and_signatures(self, record):
        for place in (7, 8):
            items = (record.signers, record.signatures)[place - 7]
            for wrong in ((), items[:1] * (3 - len(items)), items * 2):
                with pytest.raises(InvalidInput):
                    decode_record(FEDERATION.id, change(record, place, wrong))

    def test_fields_outside_their_range_are_refused(self, record):
        wrong = ((0, 0), (0, 2), (1, 0), (1, 16), (2, 0), (2, 2**32), (3, b""), (4, -1), (4, 2**53), (5, b"x"), (6, 0))
        for place, value in wrong:
            with pytest.raises(InvalidInput):
                decode_record(FEDERATION.id, change(record, place, value))

    def test_a_first_record_names_no_predecessor_and_every_other_names_one(self, record):
        if record.sequence == 0:
            with pytest.raises(InvalidInput):
                decode_record(FEDERATION.id, change(record, 5, make_id("predecessor")))
            with pytest.raises(InvalidInput):
                decode_record(FEDERATION.id, change(record, 4, 1))
        else:
            with pytest.raises(InvalidInput):
                decode_record(FEDERATION.id, change(record, 5, NONE))
            with pytest.raises(InvalidInput):
                decode_record(FEDERATION.id, change(record, 4, 0))


ODD_VALUES = (
    *(0, 1, 2, 120, 121, 240, 241, 1024, 10**15, 10**15 + 1, 2**53 - 1, 2**53, 2**64 - 1, -1, True, False, None, 1.0),
    *(bytes(length) for length in (0, 1, 31, 32, 33, 34, 63, 64, 65)),
    *("", "a", "x" * 128, "x" * 129, (), (1,), ("", ""), (b"", b""), (bytes(32),), (bytes(64),)),
    *((bytes(32),) * 2, (bytes(64),) * 2, (bytes(32),) * 3, (bytes(64),) * 3, ((), ""), ((b"",), "")),
    msgpack.ExtType(5, b""),
)
FIELDS = items(
    uint(PROTOCOL_VERSION, PROTOCOL_VERSION),
    uint(max(Kind), 1),
    uint(EPOCH_MAX, 1),
    binary(33),
    uint(),
    optional_binary(32),
    lambda _body: None,
    list_of(binary(32), SIGNERS_MAX, 1),
    list_of(binary(64), SIGNERS_MAX, 1),
)
OUTPUT = items(binary(32), optional_binary(32), uint(2 * EPOCH_MAX), uint(AMOUNT_MAX, 1))
TRANSFER_BODY = items(list_of(OUTPUT, OUTPUTS_MAX, 1), text(128))


def fits(shape: Shape, value: object) -> bool:
    try:
        shape(value)
    except InvalidInput:
        return False
    return True


def replace_each(value: tuple, place: int) -> list[tuple]:
    """The value with something odd at one place, once for each odd thing, and too short or too long."""
    odd = [(*value[:place], other, *value[place + 1 :]) for other in ODD_VALUES]
    return [*odd, value[:place], (*value, 0), ()]


@pytest.mark.parametrize("place", range(9))
def test_the_checks_that_are_written_out_refuse_what_the_general_shapes_refuse(place):
    first = msgpack.unpackb(TRANSFER.encoded, use_list=False)
    later = (*first[:4], 5, bytes(32), *first[6:])
    for raw in (*replace_each(first, place), *replace_each(later, place)):
        if not fits(FIELDS, raw):
            with pytest.raises(InvalidInput):
                decode_record(FEDERATION.id, encode(raw))


@pytest.mark.parametrize("place", range(4))
def test_an_output_is_accepted_exactly_when_its_general_shape_fits(place):
    raw = msgpack.unpackb(TRANSFER.encoded, use_list=False)
    outputs, memo = raw[6]
    bodies = [((output, *outputs[1:]), memo) for output in replace_each(outputs[0], place)]
    bodies += [*replace_each(raw[6], 0), *replace_each(raw[6], 1), outputs, (outputs[:1] * OUTPUTS_MAX, memo)]
    for body in [*bodies, (outputs[:1] * (OUTPUTS_MAX + 1), memo)]:
        encoded = encode((*raw[:6], body, *raw[7:]))
        if fits(TRANSFER_BODY, body):
            assert decode_record(FEDERATION.id, encoded).encoded == encoded
        else:
            with pytest.raises(InvalidInput):
                decode_record(FEDERATION.id, encoded)


def test_a_hold_has_one_slot():
    """A second settlement would find the escrow empty; nothing of that form may ever become final."""
    settle = BY_KIND[Kind.SETTLE]
    with pytest.raises(InvalidInput, match="one slot"):
        FEDERATION.settle(ECONOMY.donor, BY_KIND[Kind.HOLD], 1, sequence=1, prev=settle.id)


def test_amounts_outputs_and_texts_are_bounded():
    for outputs in ([], [Output(BOB.account, b"", 0, 0)], [Output(BOB.account, b"", 0, 2**53)]):
        with pytest.raises(InvalidInput):
            FEDERATION.transfer(ALICE, outputs)
    with pytest.raises(InvalidInput):
        FEDERATION.transfer(ALICE, [Output(BOB.account, b"", 0, 1)] * (OUTPUTS_MAX + 1))
    with pytest.raises(InvalidInput):
        FEDERATION.transfer(ALICE, [Output(BOB.account, b"", 0, 1)], "€" * 43)
    with pytest.raises(InvalidInput):
        FEDERATION.program(1, job_classes=("gpu", "cpu"))
    with pytest.raises(InvalidInput):
        FEDERATION.hold(ALICE, BOB, ECONOMY.sponsor, [Draw(b"", 0, 1)], grace_seconds=0)
    assert FEDERATION.program(1, job_classes=("cpu", "gpu")).id


def test_the_largest_record_fits():
    outputs = [Output(make_id(str(number)), make_id("program"), 240, 2**53 - 1) for number in range(OUTPUTS_MAX)]
    record = FEDERATION.transfer(ALICE, outputs, "m" * 128, sequence=2**53 - 1, prev=make_id("before"))
    assert RECORD_BYTES_MAX * 3 // 4 < len(record.encoded) <= RECORD_BYTES_MAX


def test_what_a_record_takes_is_summed_by_lot():
    lot = Lot(*ECONOMY.lot)
    assert get_outgoing(TRANSFER) == {lot: 15}
    assert get_outgoing(BY_KIND[Kind.HOLD]) == {lot: 100}
    assert get_outgoing(ECONOMY.grant) == {FREE_LOT: 2000}
    for kind in set(Kind) - {Kind.TRANSFER, Kind.HOLD, Kind.GRANT}:
        assert get_outgoing(BY_KIND[kind]) == {}


def test_a_record_names_what_must_come_before_it():
    assert get_named_records(ECONOMY.grant) == (
        (Kind.PROGRAM, ECONOMY.program.id),
        *((Kind.ENROL, enrolment.id) for enrolment in ECONOMY.enrolments),
    )
    assert get_named_records(BY_KIND[Kind.HOLD]) == (
        (Kind.SPONSOR, ECONOMY.sponsor.id),
        (Kind.PROGRAM, ECONOMY.program.id),
    )
    assert get_named_records(BY_KIND[Kind.SETTLE]) == (
        (Kind.HOLD, BY_KIND[Kind.HOLD].id),
        (Kind.PROGRAM, ECONOMY.program.id),
    )
    assert get_named_records(TRANSFER) == ()


def test_every_signer_must_have_signed():
    enrolment = ECONOMY.enrolments[0]
    assert has_valid_signatures(enrolment)
    swapped = decode_record(FEDERATION.id, change(enrolment, 8, enrolment.signatures[::-1]))
    assert swapped.id == enrolment.id
    assert not has_valid_signatures(swapped)
    draft = RecordDraft(Kind.ENROL, 1, enrolment.scope, 0, b"", enrolment.body, enrolment.signers)
    forged = sign_record(FEDERATION.id, draft, [FEDERATION.member_keys[1], FEDERATION.member_keys[1]])
    assert not has_valid_signatures(forged)


def test_names_of_different_things_differ():
    key = ALICE.public_key
    names = {compute_id(tag, FEDERATION.id, key) for tag in Tag}
    assert len(names) == len(Tag)
    assert compute_account_id(FEDERATION.id, key) != compute_account_id(make_id("another"), key)
    issuance = {compute_issuance_account_id(FEDERATION.id, 1, epoch) for epoch in range(1, 121)}
    assert len(issuance) == 120
    hold = BY_KIND[Kind.HOLD].id
    vouchers = {compute_voucher_id(FEDERATION.id, hold, *pair) for pair in ((1, 2), (2, 1), (1, 1))}
    assert len(vouchers) == 3
    assert len({account_scope(hold), hold_scope(hold), person_scope(hold)}) == 3
