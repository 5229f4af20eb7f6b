"""A person's half of a leave: the wallet signs first, the institution completes it (spec 7.9).

Where the institution's signature belongs stand zero bytes, so nobody can hand the file in as it is. It counts in the
epoch in which it was signed: a later one needs a new file.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from node import api
from node.addresses import Kind as AddressKind
from node.addresses import decode_address
from node.errors import UserError
from node.wallet.payments import check_key
from protocol.records import Enrol, Kind, Leave, Record, RecordDraft, ScopeKind, decode_record
from protocol.signatures import NO_SIGNATURE

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    from node.wallet.wallet import Wallet


def find_enrolment(wallet: Wallet, account: api.Account, member: int) -> Record:
    """The record by which a member enrolled this account, and that was not left. Raises: UserError."""
    for enrolment in account.enrolments:
        if enrolment.member == member and not enrolment.until_epoch:
            answer = wallet.client.get_record(enrolment.record)
            record = decode_record(wallet.federation, answer.encoded) if answer is not None else None
            is_it = record is not None and record.id == decode_address(AddressKind.RECORD, enrolment.record)
            if record is None or not is_it or record.body != Enrol(member, wallet.account):
                raise UserError(f"{wallet.node_url} names an enrolment that it does not have: ask another node")
            assert record.scope[0] == ScopeKind.PERSON
            return record
    raise UserError(f"member {member} has not enrolled this account, or you have left it already")


def sign_leave(wallet: Wallet, key: Ed25519PrivateKey, account: api.Account, member: int) -> bytes:
    """The leave record with the person's signature alone. Raises: UserError."""
    check_key(wallet, account, key)
    enrolment = find_enrolment(wallet, account, member)
    if member not in wallet.charter.members:
        raise UserError(f"member {member} has left the federation: it grants nothing any more")
    signers = (wallet.charter.members[member].member_key, key.public_key().public_bytes_raw())
    body = Leave(member, wallet.account)
    place = enrolment.scope, enrolment.sequence + 1, enrolment.id
    draft = RecordDraft(Kind.LEAVE, account.epoch, *place, body, signers)
    signature = key.sign(draft.compute_id(wallet.federation))
    return draft.assemble(wallet.federation, [NO_SIGNATURE, signature]).encoded
