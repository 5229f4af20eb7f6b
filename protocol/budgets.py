"""A person asks for a compute budget: the enrolment, already signed by the person, and a word to the institution.

The person's wallet draws the 32 byte tag at random and signs the enrolment record that the institution will complete
with its own signature, so asking takes one message and the tag says nothing about the person (spec 7.3).
"""

from __future__ import annotations

from typing import NamedTuple

from protocol.charter import Charter
from protocol.codec import binary, decode, encode, items, text, uint
from protocol.errors import InvalidInput
from protocol.identifiers import ID_BYTES, Tag, compute_account_id, compute_id
from protocol.limits import EPOCHS_MAX, MEMBERS_MAX, PROTOCOL_VERSION, PURPOSE_BYTES_MAX
from protocol.records import Enrol, Kind, RecordDraft, person_scope
from protocol.signatures import PUBLIC_KEY_BYTES, SIGNATURE_BYTES, is_valid_signature

_REQUEST = items(
    uint(PROTOCOL_VERSION, PROTOCOL_VERSION),
    binary(ID_BYTES),
    uint(MEMBERS_MAX * 1000, 1),
    uint(EPOCHS_MAX, 1),
    binary(ID_BYTES),
    binary(PUBLIC_KEY_BYTES),
    text(PURPOSE_BYTES_MAX),
    binary(SIGNATURE_BYTES),
)
BUDGET_REQUEST_BYTES_MAX = 1024


class BudgetRequest(NamedTuple):
    """A request for the budget of `program`, addressed to the member that declared it."""

    program: bytes
    member: int
    epoch: int
    tag: bytes
    person_key: bytes
    text: str
    signature: bytes
    """By the person's key, over the id of the enrolment."""

    def build_enrolment(self, charter: Charter) -> RecordDraft:
        """The enrolment that the signature is for. Raises: InvalidInput when there is no such member."""
        member = charter.members.get(self.member)
        if member is None:
            raise InvalidInput(f"the federation has no member number {self.member}")
        account = compute_account_id(charter.federation, self.person_key)
        return RecordDraft(
            Kind.ENROL,
            self.epoch,
            person_scope(self.tag),
            0,
            b"",
            Enrol(self.member, account),
            (member.member_key, self.person_key),
        )

    def compute_id(self, federation: bytes) -> bytes:
        """Names the request."""
        return compute_id(Tag.BUDGET_REQUEST, federation, self.encode())

    def encode(self) -> bytes:
        """The canonical bytes."""
        return encode((PROTOCOL_VERSION, *self))


def decode_budget_request(charter: Charter, encoded: bytes) -> BudgetRequest:
    """The request, its signature checked. Raises: InvalidInput."""
    request = BudgetRequest._make(decode(_REQUEST, encoded, BUDGET_REQUEST_BYTES_MAX)[1:])
    enrolment = request.build_enrolment(charter)
    if not is_valid_signature(request.person_key, enrolment.compute_id(charter.federation), request.signature):
        raise InvalidInput("the request is not signed by the person who asks")
    return request
