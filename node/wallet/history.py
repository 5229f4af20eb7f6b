"""What came and went: the node's list of records, with a mark where the wallet has the proof.

What a line says is read from the signed bytes that the node hands over, so a node can leave a record out, but not
invent one in the owner's name.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from node.addresses import Kind as AddressKind
from node.addresses import decode_address, encode_address
from node.errors import Unreachable
from node.wallet.journal import State
from node.wallet.unlocking import is_fence
from node.wallet.verify import verify_final
from node.wallet.wallet import Wallet
from node.wallet.wording import describe_kind, describe_note, get_movements, to_document
from protocol.credits import format_credits
from protocol.errors import InvalidInput
from protocol.records import Kind, Record, account_scope, decode_record

STATES = {
    "introduced": "pending",
    "applied": "final",
    "pending:signed": "pending",
    "pending:sent": "pending",
    "signed": "pending",
    "sent": "pending",
    "rejected": "void",
}
"""A record's state at the node or in the journal, for people. Void is what lost its place to another record."""


class Line(NamedTuple):
    """One record of the history."""

    account: bytes
    """The wallet's own."""
    record: Record
    state: str
    is_proven: bool

    @property
    def change(self) -> int:
        """Millicredits that came (above 0) or went, as far as the record itself says; a settle does not say."""
        movements = get_movements(self.record)
        came = sum(movement.amount for movement in movements if movement.account == self.account)
        is_own = self.record.scope == account_scope(self.account)
        went = sum(movement.amount for movement in movements) if is_own else 0
        return (0 if self.record.kind == Kind.HOLD and not is_own else came) - went

    def to_document(self) -> dict[str, Any]:
        """For programs."""
        return to_document(self.record) | {
            "change_millicredits": self.change,
            "state": self.state,
            "is_proven": self.is_proven,
        }

    def to_text(self, compute_epoch_end: Callable[[int], int]) -> str:
        """For people: state, amount, kind, the other side, memo, record. Epochs are told by their ends."""
        is_own = self.record.scope == account_scope(self.account)
        others = sorted({m.account for m in get_movements(self.record)} - {self.account})
        if not is_own and self.record.scope[0] == 1:
            other = "from " + encode_address(AddressKind.ACCOUNT, self.record.account)
        elif is_own and is_fence(self.record):
            other = "to yourself, which closed what another machine may have signed"
        elif others:
            more = f" and {len(others) - 1} more" if len(others) > 1 else ""
            other = "to " + encode_address(AddressKind.ACCOUNT, others[0]) + more
        else:
            other = ""
        amount = f"{'+' if self.change > 0 else ''}{format_credits(self.change)}" if self.change else "-"
        name = encode_address(AddressKind.RECORD, self.record.id)
        mark = "proven" if self.is_proven else STATES.get(self.state, self.state)
        note = describe_note(self.record, compute_epoch_end)
        parts = [f"{mark:<10}", f"{amount:>14}", describe_kind(self.record), other, note, name]
        return "  ".join(part for part in parts if part)


class HistoryPage(NamedTuple):
    """Newest first. Offline, only what the wallet itself signed."""

    lines: list[Line]
    is_offline: bool


def read_history(wallet: Wallet, limit: int, with_proof: bool) -> HistoryPage:
    """The newest records that touched the account, those on their way before the others.

    Raises: UserError when the node hands over bytes that are no records.
    """
    entries = wallet.journal.history(limit)
    try:
        answers = wallet.client.get_account_records(wallet.address, limit=limit).records
    except Unreachable:
        lines = [
            Line(
                wallet.account, decode_record(wallet.federation, entry.record), entry.state, entry.state is State.FINAL
            )
            for entry in entries
        ]
        return HistoryPage(lines, True)
    lines = []
    for answer in answers:
        record = decode_record(wallet.federation, answer.encoded)
        if decode_address(AddressKind.RECORD, answer.id) != record.id:
            raise InvalidInput(f"{wallet.node_url} hands over a record under the name of another")
        lines.append(Line(wallet.account, record, answer.state, _is_proven(wallet, record, with_proof)))
    listed = {line.record.id for line in lines}
    open_lines = [
        Line(wallet.account, decode_record(wallet.federation, entry.record), f"pending:{entry.state}", False)
        for entry in reversed(wallet.journal.pending())
        if entry.record_id not in listed
    ]
    return HistoryPage((open_lines + lines)[:limit], False)


def _is_proven(wallet: Wallet, record: Record, with_proof: bool) -> bool:
    """Whether a receipt of this record was checked, earlier or now."""
    entry = wallet.journal.find(record.id)
    if entry is not None and entry.state is State.FINAL:
        return True
    if not with_proof:
        return False
    answer = wallet.client.get_record(encode_address(AddressKind.RECORD, record.id))
    if answer is None or answer.receipt is None:
        return False
    try:
        verify_final(wallet.charters, answer.receipt, record.encoded)
    except InvalidInput:
        return False
    if entry is not None:
        wallet.journal.mark_final(record.id, answer.receipt)
    return True
