"""How a wallet pays: choose credits, sign once, write down, send, and believe nothing but a receipt.

The order is the safety. A record is in the journal before anybody sees it, and whatever happens after that (no
answer, a crash, a refusal) the same bytes are sent again, never others: two records in one slot would stop the
account. So a payment is done twice only if its owner asks twice.

What a refusal means: one node's word. Other members may have seen the record and voted for it, so the wallet keeps
it as pending and signs nothing after it, unless a receipt proves that another record took the slot.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from node import api
from node.addresses import Kind as AddressKind
from node.addresses import decode_address, encode_address
from node.errors import Unreachable, UserError
from node.wallet.journal import Entry, State
from node.wallet.lots import Lot, choose_lots, read_lots
from node.wallet.verify import verify_final
from protocol.credits import format_credits
from protocol.errors import InvalidInput, Reason, Rejected
from protocol.limits import MEMO_BYTES_MAX
from protocol.receipts import VerifiedReceipt, verify_receipt
from protocol.records import (
    NONE,
    Body,
    Kind,
    Output,
    Record,
    RecordDraft,
    Transfer,
    account_scope,
    decode_record,
    has_valid_signatures,
    sign_record,
)

if TYPE_CHECKING:
    from node.wallet.wallet import Wallet

WAIT_SECONDS = 30.0
"""How long a command waits for a payment to become final; on a healthy network that takes under a second."""

RETRY_SECONDS_FIRST = 0.2
RETRY_SECONDS_MAX = 5.0
CATCH_UP_SECONDS = 5.0
"""How long a node may lag behind a payment that this wallet knows to be final."""

HISTORY_PAGES_MAX = 50


class Payment(NamedTuple):
    """What a person wants: `amount` millicredits to `account`."""

    account: bytes
    amount: int
    memo: str


class TransferPlan(NamedTuple):
    """A payment and the lots that it would spend, soonest to expire first."""

    payment: Payment
    draws: tuple[tuple[Lot, int], ...]
    epoch: int

    @property
    def body(self) -> Transfer:
        """What is signed: one output for each lot."""
        account, _, memo = self.payment
        outputs = (Output(account, lot.program, lot.expiry_epoch, amount) for lot, amount in self.draws)
        return Transfer(tuple(outputs), memo)


class Outcome(NamedTuple):
    """What became of a signed record, as far as the wallet knows."""

    entry: Entry
    verified: VerifiedReceipt | None
    """Set exactly when the record is final."""
    refusal: str
    """Why a node refused it, or why its proof does not hold; empty when nobody said no."""


BuildBody = Callable[[api.Account], Body]


# -- planning -------------------------------------------------------------------------------------------------------


def plan_transfer(wallet: Wallet, payment: Payment, account: api.Account | None = None) -> TransferPlan:
    """Which credits a payment would spend. Signs nothing, sends nothing.

    Raises: UserError when it can't be paid; Unreachable.
    """
    if payment.amount < 1:
        raise UserError("a payment has an amount above 0")
    if payment.account == wallet.account:
        raise UserError("that is this wallet's own address: there is nothing to pay")
    check_text(payment.memo, MEMO_BYTES_MAX, "memo")
    account = account or read_account(wallet)
    programs = {program.id for program in wallet.client.get_programs() if program.is_transferable}

    def is_payable(lot: Lot) -> bool:
        return not lot.program or encode_address(AddressKind.PROGRAM, lot.program) in programs

    draws = choose_lots(read_lots(account), payment.amount, account.epoch, is_payable, "sent")
    return TransferPlan(payment, tuple(draws), account.epoch)


def check_text(text: str, bytes_max: int, what: str) -> None:
    """Raise UserError unless a record can hold the text."""
    try:
        size = len(text.encode())
    except UnicodeEncodeError:
        raise UserError(f"the {what} is not valid text (UTF-8)") from None
    if size > bytes_max:
        raise UserError(f"a {what} has at most {bytes_max} bytes; this one has {size}")


def read_account(wallet: Wallet) -> api.Account:
    """The account as the node sees it, once the node is no older than what this wallet knows.

    Raises: UserError when the node lags, disagrees about the time, or claims records that it can't prove.
    """
    latest = wallet.journal.latest(account_scope(wallet.account))
    known = latest.sequence + 1 if latest is not None and latest.state is State.FINAL else 0
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
    record = _read_final_record(wallet, head)
    if record is None or (record.scope, record.sequence) != (account_scope(wallet.account), sequence - 1):
        raise UserError(
            f"{wallet.node_url} claims a record of this account and can't prove it: ask another node with --node"
        )


def _read_final_record(wallet: Wallet, record_id: bytes) -> Record | None:
    """A record that the node proves to be final, or None."""
    answer = wallet.client.get_record(encode_address(AddressKind.RECORD, record_id))
    if answer is None or answer.receipt is None:
        return None
    try:
        record = verify_receipt(wallet.charters, answer.receipt).record
    except InvalidInput:
        return None
    return record if record.id == record_id else None


# -- signing --------------------------------------------------------------------------------------------------------


def sign_next(wallet: Wallet, key: Ed25519PrivateKey, kind: Kind, purpose: str, build_body: BuildBody) -> Entry | None:
    """Sign the account's next record and write it down; it is not sent yet.

    `build_body` chooses the credits from the account as it is now; nobody else signs for this wallet meanwhile.
    Returns None when an earlier record is not final yet: then nothing was signed.

    Raises: UserError; Unreachable.
    """
    with wallet.lock():
        if find_pending(wallet):
            return None
        account = read_account(wallet)
        body = build_body(account)
        federation = wallet.federation
        public_key = key.public_key().public_bytes_raw()
        head = decode_address(AddressKind.RECORD, account.head) if account.head else NONE

        def make_record(sequence: int, _before: bytes | None) -> tuple[bytes, bytes]:
            # The head was proven above; what the journal has before may be a record that lost its slot.
            if sequence != account.next_sequence:
                raise UserError("the node and this wallet disagree about the account's next slot: nothing was signed")
            scope = account_scope(wallet.account)
            draft = RecordDraft(kind, account.epoch, scope, sequence, head, body, (public_key,))
            record = sign_record(federation, draft, [key])
            assert has_valid_signatures(record)
            return record.id, record.encoded

        return wallet.journal.append(
            account_scope(wallet.account), purpose, make_record, sequence_min=account.next_sequence
        )


def spend(
    wallet: Wallet,
    key: Ed25519PrivateKey,
    kind: Kind,
    purpose: str,
    build_body: BuildBody,
    wait_seconds: float = WAIT_SECONDS,
) -> Outcome:
    """Finish what is pending, then sign, write down and send the account's next record, and wait for its receipt.

    Raises: UserError when something earlier is still pending (nothing was signed); Unreachable (when it was signed,
    the text says that it is kept).
    """
    for _ in range(10):
        _finish_pending(wallet, wait_seconds)
        entry = sign_next(wallet, key, kind, purpose, build_body)
        if entry is not None:
            return submit_entry(wallet, entry, wait_seconds)
    raise UserError("other commands of this wallet keep signing: nothing was signed, try again")


def _finish_pending(wallet: Wallet, wait_seconds: float) -> None:
    """Raise UserError unless all that the account signed before is final now."""
    for entry in find_pending(wallet):
        try:
            outcome = submit_entry(wallet, entry, wait_seconds)
        except Unreachable as error:
            raise Unreachable(f"nothing new was signed, since an earlier record is pending: {error}") from error
        if is_open(outcome.entry):
            why = f" ({outcome.refusal})" if outcome.refusal else ""
            raise UserError(
                f"an earlier record of this wallet is not final yet{why}, so nothing new was signed: "
                "see `allmende wallet pending`"
            )


def send_transfer(
    wallet: Wallet, key: Ed25519PrivateKey, payment: Payment, wait_seconds: float = WAIT_SECONDS
) -> Outcome:
    """Pay. The credits are chosen anew, from the account as it is when the record is signed."""
    purpose = f"pay {format_credits(payment.amount)} to {encode_address(AddressKind.ACCOUNT, payment.account)}"
    return spend(
        wallet,
        key,
        Kind.TRANSFER,
        purpose,
        lambda account: plan_transfer(wallet, payment, account).body,
        wait_seconds,
    )


# -- sending --------------------------------------------------------------------------------------------------------


def find_pending(wallet: Wallet) -> list[Entry]:
    """The account's records that were signed and are not known to be final, in the order of their slots."""
    scope = account_scope(wallet.account)
    return [entry for entry in wallet.journal.pending() if entry.scope == scope]


def find_same_payment(wallet: Wallet, payment: Payment) -> Entry | None:
    """A pending record that pays exactly this: most likely the same command, run again after a crash."""
    for entry in find_pending(wallet):
        body = decode_record(wallet.federation, entry.record).body
        if isinstance(body, Transfer) and body.memo == payment.memo:
            paid = {output.account for output in body.outputs}, sum(output.amount for output in body.outputs)
            if paid == ({payment.account}, payment.amount):
                return entry
    return None


def resend_pending(wallet: Wallet, wait_seconds: float = WAIT_SECONDS) -> list[Outcome]:
    """Send every pending record of the wallet again, byte for byte, and wait for their receipts."""
    return [submit_entry(wallet, entry, wait_seconds) for entry in wallet.journal.pending()]


def submit_entry(wallet: Wallet, entry: Entry, wait_seconds: float = WAIT_SECONDS) -> Outcome:
    """Send a journalled record until there is a receipt that holds, a refusal, or no time left.

    Repeating this changes nothing: a node that knows the record answers with what became of it.

    Raises: Unreachable when the node never answered; the record stays in the journal.
    """
    deadline = time.monotonic() + wait_seconds
    pause = RETRY_SECONDS_FIRST
    while True:
        remaining = max(0.0, deadline - time.monotonic())
        try:
            answer = wallet.client.submit_record(entry.record, wait=int(min(remaining, api.WAIT_SECONDS_MAX)))
        except Rejected as rejection:
            return _handle_refusal(wallet, entry, rejection)
        except Unreachable as error:
            if remaining <= pause:
                raise Unreachable(
                    f"{error}. The record is signed and kept; `allmende wallet pending --resend` sends the very "
                    "same bytes again"
                ) from error
        except UserError as error:
            return Outcome(_reread(wallet, entry), None, str(error))
        else:
            wallet.journal.mark_sent(entry.record_id)
            if answer.receipt is not None:
                return _handle_receipt(wallet, entry, answer.receipt)
            if remaining <= pause:
                return Outcome(_reread(wallet, entry), None, "")
        time.sleep(min(pause, remaining))
        pause = min(2 * pause, RETRY_SECONDS_MAX)


def _handle_receipt(wallet: Wallet, entry: Entry, receipt: bytes) -> Outcome:
    """Final is what the receipt proves, whatever the node says beside it."""
    try:
        verified = verify_final(wallet.charters, receipt, entry.record)
    except InvalidInput as error:
        return Outcome(entry, None, f"{wallet.node_url} calls it final, but its receipt does not hold: {error}")
    wallet.journal.mark_final(entry.record_id, receipt)
    return Outcome(_reread(wallet, entry), verified, "")


def _handle_refusal(wallet: Wallet, entry: Entry, rejection: Rejected) -> Outcome:
    """Keep the record as pending, unless its fate can be proven."""
    if rejection.reason in (Reason.SLOT_TAKEN, Reason.PREDECESSOR_WRONG):
        answer = wallet.client.get_record(encode_address(AddressKind.RECORD, entry.record_id))
        if answer is not None and answer.receipt is not None:
            return _handle_receipt(wallet, entry, answer.receipt)
        other = _find_final_in_slot(wallet, entry.sequence)
        if other is not None and other.id != entry.record_id:
            wallet.journal.mark_rejected(
                entry.record_id, f"{encode_address(AddressKind.RECORD, other.id)} is final in its slot"
            )
    reason = rejection.reason.name.lower().replace("_", " ")
    return Outcome(_reread(wallet, entry), None, f"{reason}: {rejection.detail}" if rejection.detail else reason)


def _find_final_in_slot(wallet: Wallet, sequence: int) -> Record | None:
    """The record of this account that the node proves to be final in a slot."""
    before: int | None = None
    for _ in range(HISTORY_PAGES_MAX):
        page = wallet.client.get_account_records(wallet.address, limit=api.HISTORY_LIMIT_MAX, before=before)
        for answer in page.records:
            if answer.account == wallet.address and answer.sequence == sequence:
                record = _read_final_record(wallet, decode_address(AddressKind.RECORD, answer.id))
                wanted = (account_scope(wallet.account), sequence)
                return record if record is not None and (record.scope, record.sequence) == wanted else None
        before = page.before
        if before is None:
            return None
    return None


def _reread(wallet: Wallet, entry: Entry) -> Entry:
    found = wallet.journal.find(entry.record_id)
    assert found is not None, "what was signed stays in the journal"
    return found


def is_open(entry: Entry) -> bool:
    """Whether the fate of a record is not known yet."""
    return entry.state in (State.SIGNED, State.SENT)
