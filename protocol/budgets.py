"""A person asks for a compute budget: the enrolment, already signed by the person, and a word to the institution.

The person's wallet draws the 32 byte tag at random and signs the enrolment record that the institution will complete
with its own signature, so asking takes one message and the tag says nothing about the person (spec 7.3).
"""

from __future__ import annotations

from typing import NamedTuple

from protocol.charter import Charter
from protocol.codec import VERSION_SHAPE, binary, decode, encode, items, text, uint
from protocol.errors import InvalidInput
from protocol.identifiers import ID_BYTES, Tag, compute_id
from protocol.limits import EPOCH_MAX, MEMBER_NUMBER_MAX, PROTOCOL_VERSION, PURPOSE_BYTES_MAX
from protocol.records import Enrol, Kind, RecordDraft, person_scope
from protocol.signatures import PUBLIC_KEY_BYTES, SIGNATURE_BYTES, Signer, is_valid_signature

_REQUEST = items(
    VERSION_SHAPE,
    binary(ID_BYTES),
    uint(MEMBER_NUMBER_MAX, 1),
    uint(EPOCH_MAX, 1),
    binary(ID_BYTES),
    binary(ID_BYTES),
    binary(PUBLIC_KEY_BYTES),
    text(PURPOSE_BYTES_MAX),
    binary(SIGNATURE_BYTES),
    binary(SIGNATURE_BYTES),
)
BUDGET_REQUEST_BYTES_MAX = 1024


class BudgetRequest(NamedTuple):
    """A request for the budget of `program`, addressed to the member that declared it."""

    program: bytes
    member: int
    epoch: int
    tag: bytes
    account: bytes
    person_key: bytes
    """The account's key in force, which signs."""
    text: str
    enrolment_signature: bytes
    """By the person's key, over the id of the enrolment: what the member completes."""
    signature: bytes
    """By the person's key, over the id of the request: nobody can change the program or the words on the way."""

    def build_enrolment(self, charter: Charter) -> RecordDraft:
        """The enrolment that the person asks for. Raises: InvalidInput when there is no such member."""
        member = charter.members.get(self.member)
        if member is None:
            raise InvalidInput(f"the federation has no member number {self.member}")
        return RecordDraft(
            Kind.ENROL,
            self.epoch,
            person_scope(self.tag),
            0,
            b"",
            Enrol(self.member, self.account),
            (member.member_key, self.person_key),
        )

    def compute_id(self, federation: bytes) -> bytes:
        """Names the request."""
        return compute_id(Tag.BUDGET_REQUEST, federation, encode((PROTOCOL_VERSION, *self[:-1])))

    def sign(self, charter: Charter, person: Signer) -> BudgetRequest:
        """The request with both signatures of the person."""
        enrolment_id = self.build_enrolment(charter).compute_id(charter.federation)
        enrolled = self._replace(enrolment_signature=person.sign(enrolment_id))
        return enrolled._replace(signature=person.sign(enrolled.compute_id(charter.federation)))

    def encode(self) -> bytes:
        """The canonical bytes."""
        return encode((PROTOCOL_VERSION, *self))


def decode_budget_request(charter: Charter, encoded: bytes) -> BudgetRequest:
    """The request, both signatures checked; whether its key is in force the ledger says. Raises: InvalidInput."""
    request = BudgetRequest._make(decode(_REQUEST, encoded, BUDGET_REQUEST_BYTES_MAX)[1:])
    enrolment_id = request.build_enrolment(charter).compute_id(charter.federation)
    signed = (
        (enrolment_id, request.enrolment_signature),
        (request.compute_id(charter.federation), request.signature),
    )
    if not all(is_valid_signature(request.person_key, what, signature) for what, signature in signed):
        raise InvalidInput("the request is not signed by the person who asks")
    return request
