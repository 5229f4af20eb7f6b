"""A request for a budget carries the person's half of the enrolment, and nothing that says who it is."""

from __future__ import annotations

import pytest

from protocol.budgets import BUDGET_REQUEST_BYTES_MAX, decode_budget_request
from protocol.errors import InvalidInput
from protocol.records import Enrol, has_valid_signatures
from tests.local_members import LocalMember
from tests.strategies import NOW, make_economy, make_federation, make_id

FEDERATION = make_federation()
CHARTER = FEDERATION.charter
APPLICANT = FEDERATION.person("applicant")
REQUEST = FEDERATION.budget_request(1, APPLICANT, make_economy(FEDERATION).program.id)


def test_a_request_decodes_to_itself():
    decoded = decode_budget_request(CHARTER, REQUEST.encode())
    assert decoded == REQUEST
    assert decoded.encode() == REQUEST.encode()


def test_the_member_completes_the_enrolment_that_the_person_signed():
    draft = REQUEST.build_enrolment(CHARTER)
    member_signature = FEDERATION.member_keys[1].sign(draft.compute_id(FEDERATION.id))
    record = draft.assemble(FEDERATION.id, [member_signature, REQUEST.enrolment_signature])
    assert has_valid_signatures(record)
    assert record.body == Enrol(1, APPLICANT.account)
    assert record.account == REQUEST.tag
    LocalMember(FEDERATION, 2).voter.check_introduction(record, NOW)


def test_every_changed_byte_is_refused():
    encoded = REQUEST.encode()
    for place in range(len(encoded)):
        changed = bytearray(encoded)
        changed[place] ^= 1
        try:
            decoded = decode_budget_request(CHARTER, bytes(changed))
        except InvalidInput:
            continue
        # The program and the words are not part of the enrolment; whoever sends them sends them anew.
        assert (decoded.program, decoded.text) != (REQUEST.program, REQUEST.text)
        assert decoded._replace(program=REQUEST.program, text=REQUEST.text) == REQUEST


@pytest.mark.parametrize(
    "changes",
    [{"member": 2}, {"member": 9}, {"epoch": 2}, {"epoch": 0}, {"tag": make_id("other")}, {"text": "é" * 257}],
)
def test_a_request_for_something_else_than_was_signed_is_refused(changes):
    with pytest.raises(InvalidInput):
        decode_budget_request(CHARTER, REQUEST._replace(**changes).encode())


def test_a_request_is_for_one_federation():
    with pytest.raises(InvalidInput):
        decode_budget_request(make_federation((1, 1, 1, 1), "Elsewhere").charter, REQUEST.encode())


def test_requests_have_names_and_a_bounded_size():
    assert REQUEST.compute_id(FEDERATION.id) != REQUEST._replace(text="").compute_id(FEDERATION.id)
    assert len(REQUEST._replace(text="é" * 256).encode()) <= BUDGET_REQUEST_BYTES_MAX
    with pytest.raises(InvalidInput):
        decode_budget_request(CHARTER, bytes(BUDGET_REQUEST_BYTES_MAX + 1))
