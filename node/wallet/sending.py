"""How a signed record gets out and what became of it: send the same bytes, believe nothing but a receipt.

What a refusal means: one node's word. Other members may have seen the record and voted for it, so the wallet keeps
it as pending, unless a receipt proves that another record took its slot. Then it can never apply any more.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, NamedTuple

from node import api
from node.addresses import Kind as AddressKind
from node.addresses import decode_address, encode_address
from node.errors import Unreachable, UserError
from node.wallet.journal import Entry, State
from node.wallet.refusals import TEXTS, describe_refusal
from node.wallet.stopped import list_stops
from node.wallet.verify import verify_final
from protocol.errors import WAITING_REASONS, InvalidInput, Reason, Rejected
from protocol.receipts import VerifiedReceipt, verify_receipt
from protocol.records import NONE, Record, account_scope

if TYPE_CHECKING:
    from node.wallet.wallet import Wallet

WAIT_SECONDS = 30.0
"""How long a command waits for a payment to become final; on a healthy network that takes under a second."""

LOOK_SECONDS = 1
"""After so long without a receipt the wallet looks whether the slot is contested."""

RETRY_SECONDS_FIRST = 0.2
RETRY_SECONDS_MAX = 5.0
CATCH_UP_SECONDS = 5.0
"""How long a node may lag behind a payment that this wallet knows to be final."""

HISTORY_PAGES_MAX = 50


class Outcome(NamedTuple):
    """What became of a signed record, as far as the wallet knows."""

    entry: Entry
    verified: VerifiedReceipt | None
    """Set exactly when the record is final."""
    refusal: str
    """Why a node refused it, or why its proof does not hold; empty when nobody said no."""
    is_contested: bool = False
    """The node says that the slot has other claims, too: only its owner can free it."""
    is_waiting: bool = False
    """The refusal may pass by itself: the very same bytes may be sent again later."""
    lost: tuple[Entry, ...] = ()
    """Records of earlier commands that lost their slots meanwhile: what they were for was not done."""


class Proven(NamedTuple):
    """A record and the receipt that proves it final."""

    record: Record
    receipt: bytes


def is_open(entry: Entry) -> bool:
    """Whether the fate of a record is not known yet."""
    return entry.state in (State.SIGNED, State.SENT)


def find_pending(wallet: Wallet) -> list[Entry]:
    """The account's records that were signed and are not known to be final, in the order of their slots."""
    scope = account_scope(wallet.account)
    return [entry for entry in wallet.journal.pending() if entry.scope == scope]


# -- looking --------------------------------------------------------------------------------------------------------


def read_account(wallet: Wallet) -> api.Account:
    """The account as the node sees it, once the node is no older than what this wallet knows.

    Raises: UserError when the node lags, disagrees about the time, or claims records that it can't prove.
    """
    latest = wallet.journal.latest(account_scope(wallet.account))
    # A rejected record is one whose slot provably went to another.
    known = latest.sequence + 1 if latest is not None and not is_open(latest) else 0
    deadline = time.monotonic() + CATCH_UP_SECONDS
    while (account := wallet.client.get_account(wallet.address)).next_sequence < known:
        if time.monotonic() > deadline:
            raise UserError(
                f"{wallet.node_url} does not yet know a payment of this wallet that is final: "
                "try again in a moment, or another node with --node"
            )
        time.sleep(RETRY_SECONDS_FIRST)
    epoch = wallet.compute_epoch()
    if account.epoch != epoch:
        raise UserError(
            f"by this machine's clock it is epoch {epoch}, by the node's it is {account.epoch}: "
            "set the clock right (or ask another node with --node), since what is signed now could be lost"
        )
    _check_head(wallet, account, latest)
    return account


def _check_head(wallet: Wallet, account: api.Account, latest: Entry | None) -> None:
    """Let a node not talk the wallet into a slot that does not exist: that record would wait for ever.

    The wallet's own last final record needs no proof. Another one (the words are used on two machines, or the
    wallet was restored) is believed with a receipt.
    """
    sequence = account.next_sequence
    head = decode_address(AddressKind.RECORD, account.head) if account.head else NONE
    if (sequence == 0) != (head == NONE):
        raise UserError(f"{wallet.node_url} contradicts itself about this account: ask another node with --node")
    if sequence == 0 or (latest is not None and latest.state is State.FINAL and latest.record_id == head):
        return
    proven = read_final_record(wallet, head)
    record = proven.record if proven else None
    if record is None or record.slot != (account_scope(wallet.account), sequence - 1):
        raise UserError(
            f"{wallet.node_url} claims a record of this account and can't prove it: ask another node with --node"
        )


def read_final_record(wallet: Wallet, record_id: bytes) -> Proven | None:
    """A record that the node proves to be final, or None."""
    answer = wallet.client.get_record(encode_address(AddressKind.RECORD, record_id))
    if answer is None or answer.receipt is None:
        return None
    try:
        record = verify_receipt(wallet.charters, answer.receipt).record
    except InvalidInput:
        return None
    return Proven(record, answer.receipt) if record.id == record_id else None


def settle_slot(wallet: Wallet, sequence: int) -> Record | None:
    """The record that the node proves to be final in a slot of the account, or None; the journal knows it then."""
    proven = _find_final_in_slot(wallet, sequence)
    if proven is None:
        return None
    note_final(wallet, proven)
    return proven.record


def note_final(wallet: Wallet, proven: Proven) -> None:
    """Write down what is final in a slot, and that nothing else which this wallet signed for it ever will be."""
    record = proven.record
    for entry in wallet.journal.slot(*record.slot):
        if entry.record_id == record.id:
            wallet.journal.mark_final(record.id, proven.receipt)
        else:
            winner = encode_address(AddressKind.RECORD, record.id)
            wallet.journal.mark_rejected(entry.record_id, f"{winner} became final in its place")


def _find_final_in_slot(wallet: Wallet, sequence: int) -> Proven | None:
    before: int | None = None
    for _ in range(HISTORY_PAGES_MAX):
        page = wallet.client.get_account_records(wallet.address, limit=api.HISTORY_LIMIT_MAX, before=before)
        for answer in page.records:
            if answer.account == wallet.address and answer.sequence == sequence:
                proven = read_final_record(wallet, decode_address(AddressKind.RECORD, answer.id))
                wanted = (account_scope(wallet.account), sequence)
                return proven if proven and (proven.record.scope, proven.record.sequence) == wanted else None
        before = page.before
        if before is None:
            return None
    return None


# -- sending --------------------------------------------------------------------------------------------------------


def submit_entry(wallet: Wallet, entry: Entry, wait_seconds: float = WAIT_SECONDS) -> Outcome:
    """Send a journalled record until there is a receipt that holds, a refusal, a contest, or no time left.

    Repeating this changes nothing: a node that knows the record answers with what became of it.

    Raises: Unreachable when the node never answered; the record stays in the journal.
    """
    deadline = time.monotonic() + wait_seconds
    pause = RETRY_SECONDS_FIRST
    while True:
        remaining = max(0.0, deadline - time.monotonic())
        started = time.monotonic()
        try:
            answer = wallet.client.submit_record(entry.record, wait=int(min(remaining, LOOK_SECONDS)))
        except Rejected as rejection:
            return _handle_refusal(wallet, entry, rejection)
        except Unreachable as error:
            if remaining <= pause:
                raise Unreachable(
                    f"{error}. It is signed and kept; `allmende wallet pending --resend` sends it again, and never "
                    "pays twice"
                ) from error
        except UserError as error:
            return Outcome(reread(wallet, entry), None, str(error))
        else:
            wallet.journal.mark_sent(entry.record_id)
            if answer.receipt is not None:
                return handle_receipt(wallet, entry, answer.receipt)
            if time.monotonic() - started >= LOOK_SECONDS / 2 and _is_contested(wallet, entry):
                why = TEXTS[Reason.SLOT_CONTESTED]
                return Outcome(reread(wallet, entry), None, why, is_contested=True)
            if remaining <= pause:
                return Outcome(reread(wallet, entry), None, "")
        time.sleep(min(pause, remaining))
        pause = min(2 * pause, RETRY_SECONDS_MAX)


def _is_contested(wallet: Wallet, entry: Entry) -> bool:
    """Whether the node knows other claims to a slot of the account. Of other scopes' slots it does not tell."""
    return entry.scope == account_scope(wallet.account) and wallet.client.get_slot(wallet.address).is_contested


def handle_receipt(wallet: Wallet, entry: Entry, receipt: bytes) -> Outcome:
    """Final is what the receipt proves, whatever the node says beside it."""
    try:
        verified = verify_final(wallet.charters, receipt, entry.record)
    except InvalidInput as error:
        return Outcome(entry, None, f"{wallet.node_url} calls it final, but its receipt does not hold: {error}")
    wallet.journal.mark_final(entry.record_id, receipt)
    return Outcome(reread(wallet, entry), verified, "")


def _handle_refusal(wallet: Wallet, entry: Entry, rejection: Rejected) -> Outcome:
    """Keep the record as pending, unless its fate can be proven."""
    if rejection.reason in (Reason.SLOT_TAKEN, Reason.PREDECESSOR_WRONG):
        answer = wallet.client.get_record(encode_address(AddressKind.RECORD, entry.record_id))
        if answer is not None and answer.receipt is not None:
            return handle_receipt(wallet, entry, answer.receipt)
        if entry.scope == account_scope(wallet.account):
            settle_slot(wallet, entry.sequence)
    refusal = describe_refusal(rejection)
    if rejection.reason in (Reason.SUSPENDED, Reason.WRITER_WRONG):
        refusal = "; ".join([refusal, *list_stops(wallet, wallet.client.get_account(wallet.address))])
    is_contested, is_waiting = rejection.reason is Reason.SLOT_CONTESTED, rejection.reason in WAITING_REASONS
    return Outcome(reread(wallet, entry), None, refusal, is_contested, is_waiting)


def reread(wallet: Wallet, entry: Entry) -> Entry:
    """The entry as the journal has it now."""
    found = wallet.journal.find(entry.record_id)
    assert found is not None, "what was signed stays in the journal"
    return found
