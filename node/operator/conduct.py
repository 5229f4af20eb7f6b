"""What an institution does about accounts that it enrolled or sponsored: stop one for a while, let it go on, let a
person leave.

A suspension is bounded and says to whom its owner can turn; it stops payments, holds and grants, and nothing that was
promised before (spec 7.11).
"""

from __future__ import annotations

import time
from collections.abc import Callable

from node import api
from node.addresses import Kind as AddressKind
from node.addresses import decode_address, encode_address
from node.errors import UserError
from node.member import LedgerMember
from node.operator.actions import OperatorActions, answer
from node.terminal import format_moment
from protocol.errors import InvalidInput
from protocol.identifiers import ID_BYTES
from protocol.limits import APPEAL_BYTES_MAX, REASON_CODE_MAX, SUSPENSION_SECONDS_MAX
from protocol.records import Kind, Leave, Record, RecordDraft, Reinstate, Suspend, decode_record
from protocol.signatures import is_valid_signature

DAY_SECONDS = 24 * 3600
DAYS_MAX = SUSPENSION_SECONDS_MAX // DAY_SECONDS


class ConductActions:
    """Acts of one member about the accounts that it vouches for."""

    def __init__(self, actions: OperatorActions, clock: Callable[[], float] = time.time) -> None:
        self._actions = actions
        self._member: LedgerMember = actions.member
        self._ledger = actions.member.replica.ledger
        self._clock = clock

    async def suspend(self, order: api.SuspendOrder, *, dry_run: bool = False) -> api.Signed:
        """Stop an account until the end of the epoch that `days` from now lies in. Raises: UserError; Rejected."""
        account = decode_address(AddressKind.ACCOUNT, order.account)
        _check_order(order)
        async with self._actions.turn:
            self._actions.check_ready()
            until_epoch = self._ledger.charter.compute_epoch(int(self._clock()) + order.days * DAY_SECONDS)
            body = Suspend(self._member.number, account, order.reason, order.evidence, until_epoch, order.appeal)
            end = format_moment(self._ledger.charter.compute_epoch_end(until_epoch))
            text = f"{order.account.strip()} is suspended by us until {end}, the end of epoch {until_epoch}."
            before = self._find_suspension(account)
            if before is not None and before.body == body:
                return answer([self._actions.describe_state(before.id)], text, dry_run)
            return await self._actions.sign_own(Kind.SUSPEND, body, text, dry_run)

    async def reinstate(self, order: api.ReinstateOrder, *, dry_run: bool = False) -> api.Signed:
        """End our own suspension of an account. Raises: UserError when there is none; Rejected."""
        account = decode_address(AddressKind.ACCOUNT, order.account)
        async with self._actions.turn:
            self._actions.check_ready()
            if self._actions.account not in self._ledger.suspensions.get(account, {}):
                raise UserError("we have not suspended this account: see `allmende program suspended`")
            body = Reinstate(self._member.number, account)
            text = f"Our suspension of {order.account.strip()} ends."
            return await self._actions.sign_own(Kind.REINSTATE, body, text, dry_run)

    def _find_suspension(self, account: bytes) -> Record | None:
        name = self._member.history.suspensions.get((account, self._actions.account))
        return self._member.get_record(name) if name is not None else None

    async def complete_leave(self, encoded: bytes, *, dry_run: bool = False) -> api.Signed:
        """Put our signature beside a person's who wants to leave us. Raises: UserError; Rejected."""
        draft, signature = self._open_leave(encoded)
        assert isinstance(draft.body, Leave)
        person = encode_address(AddressKind.ACCOUNT, draft.body.account)
        text = f"{person} is enrolled with us to the end of epoch {draft.epoch}, and no longer."
        async with self._actions.turn:
            self._actions.check_ready()
            federation = self._ledger.charter.federation
            record_id = draft.compute_id(federation)
            if self._member.replica.is_final(record_id):
                return answer([self._actions.describe_state(record_id)], text, dry_run)
            self._actions.check(draft)
            if dry_run:
                submitted = api.Submitted(encode_address(AddressKind.RECORD, record_id), "waiting", None)
                return answer([submitted], text, dry_run)
            record = draft.assemble(federation, [self._actions.key.sign(record_id), signature])
            self._actions.outbox.add(record)
        return answer([await self._actions.settle(record)], text, dry_run)

    def _open_leave(self, encoded: bytes) -> tuple[RecordDraft, bytes]:
        """What the person signed, and the signature. Raises: UserError when it is not for us, or does not hold."""
        try:
            record = decode_record(self._ledger.charter.federation, encoded)
        except InvalidInput as error:
            raise UserError(f"this is no request to leave ({error})") from None
        if not isinstance(record.body, Leave) or record.signers[0] != self._actions.public_key:
            raise UserError("this is no request to leave us: was it made for another institution?")
        if not is_valid_signature(record.signers[1], record.id, record.signatures[1]):
            raise UserError("this request to leave is not signed by the person")
        return RecordDraft(Kind.LEAVE, *record[1:7]), record.signatures[1]


def _check_order(order: api.SuspendOrder) -> None:
    """Raises: UserError that names the field."""
    if not 0 <= order.reason <= REASON_CODE_MAX:
        raise UserError(f"a reason is a code from 0 to {REASON_CODE_MAX}")
    if not 1 <= order.days <= DAYS_MAX:
        raise UserError(f"an account is suspended for 1 to {DAYS_MAX} days")
    if len(order.evidence) not in (0, ID_BYTES):
        raise UserError("evidence is named by its SHA-256, or not at all")
    appeal_bytes = len(order.appeal.encode("utf-8", "surrogatepass"))
    if not 1 <= appeal_bytes <= APPEAL_BYTES_MAX or not order.appeal.isprintable():
        raise UserError(f"say in 1 to {APPEAL_BYTES_MAX} bytes of plain text to whom the owner can turn")
