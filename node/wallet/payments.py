"""How a wallet pays: choose credits, sign once, write down, send, and believe nothing but a receipt.

The order is the safety. A record is in the journal before anybody sees it, and whatever happens after that (no
answer, a crash, a refusal) the same bytes are sent again. Another record for the same payment is signed only when a
receipt proves that the first can never apply, because another one is final in its slot. So a payment is done twice
only if its owner asks twice.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from node import api
from node.addresses import Kind as AddressKind
from node.addresses import decode_address, encode_address
from node.errors import Unreachable, UserError
from node.wallet.journal import Entry, State
from node.wallet.lots import Lot, choose_lots, read_lots
from node.wallet.sending import (
    WAIT_SECONDS,
    Outcome,
    find_pending,
    is_open,
    read_account,
    reread,
    submit_entry,
)
from node.wallet.stopped import check_not_stopped
from node.wallet.unlocking import finish_entry, list_lost
from protocol.credits import format_credits
from protocol.identifiers import compute_account_id
from protocol.limits import MEMO_BYTES_MAX
from protocol.records import (
    NONE,
    Body,
    Kind,
    Output,
    RecordDraft,
    Rotate,
    Transfer,
    account_scope,
    decode_record,
    has_valid_signatures,
    sign_record,
)

if TYPE_CHECKING:
    from node.wallet.wallet import Wallet

ROUNDS_MAX = 20
"""How often a payment is signed anew because another machine of the same wallet took its slot."""


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
    check_not_stopped(wallet, account)
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


# -- signing --------------------------------------------------------------------------------------------------------


def sign_next(
    wallet: Wallet,
    key: Ed25519PrivateKey,
    kind: Kind,
    purpose: str,
    build_body: BuildBody,
    cosigners: Sequence[Ed25519PrivateKey] = (),
) -> Entry | None:
    """Sign the account's next record and write it down; it is not sent yet.

    `build_body` chooses the credits from the account as it is now; nobody else signs for this wallet meanwhile. A
    rotation is signed by its new key, too: `cosigners`.
    Returns None when an earlier record is not final yet: then nothing was signed.

    Raises: UserError; Unreachable.
    """
    with wallet.lock():
        if find_pending(wallet):
            return None
        account = read_account(wallet)
        check_key(wallet, account, key)
        if kind in (Kind.TRANSFER, Kind.HOLD):
            check_not_stopped(wallet, account)
        body = build_body(account)
        federation = wallet.federation
        keys = (key, *cosigners)
        signers = tuple(each.public_key().public_bytes_raw() for each in keys)
        head = decode_address(AddressKind.RECORD, account.head) if account.head else NONE

        def make_record(sequence: int, _before: bytes | None) -> tuple[bytes, bytes]:
            # The head was proven above; what the journal has before may be a record that lost its slot.
            if sequence != account.next_sequence:
                raise UserError(
                    "the node and this wallet disagree which payment comes next, so nothing was signed: "
                    "try another node with --node"
                )
            scope = account_scope(wallet.account)
            draft = RecordDraft(kind, account.epoch, scope, sequence, head, body, signers)
            record = sign_record(federation, draft, keys)
            assert has_valid_signatures(record)
            return record.id, record.encoded

        return wallet.journal.append(
            account_scope(wallet.account), purpose, make_record, sequence_min=account.next_sequence
        )


def check_key(wallet: Wallet, account: api.Account, key: Ed25519PrivateKey) -> None:
    """Raise UserError unless the node has this key in force: what another one signs no member votes for."""
    public_key = key.public_key().public_bytes_raw()
    if account.key is not None:
        is_in_force = account.key == public_key
    else:
        is_in_force = compute_account_id(wallet.federation, public_key) == wallet.account
    if not is_in_force:
        raise UserError(
            f"{wallet.node_url} has another key of this account in force: another machine of this wallet has rotated "
            "it just now, or the node lags. Nothing was signed; run the command again"
        )


def spend(
    wallet: Wallet,
    key: Ed25519PrivateKey,
    kind: Kind,
    purpose: str,
    build_body: BuildBody,
    wait_seconds: float = WAIT_SECONDS,
    entry: Entry | None = None,
    cosigners: Sequence[Ed25519PrivateKey] = (),
) -> Outcome:
    """Finish what is pending, then sign, write down and send the account's next record, and wait for its receipt.

    Where another record became final in its slot, it is signed anew for the next one: a receipt proves that the first
    can never apply, so this pays once. `entry` is the record when it was signed before, by a command that was
    interrupted.

    Raises: UserError when something earlier is still pending (nothing was signed); Unreachable (when it was signed,
    the text says that it is kept).
    """
    lost: list[Entry] = []
    for _ in range(ROUNDS_MAX):
        if entry is None:
            lost += _finish_pending(wallet, key, wait_seconds)
            entry = sign_next(wallet, key, kind, purpose, build_body, cosigners)
            if entry is None:
                continue
        outcome = finish_entry(wallet, key, entry, wait_seconds)
        if outcome.entry.state is not State.REJECTED:
            return outcome._replace(lost=tuple(lost))
        entry = None
    raise UserError("other commands and machines of this wallet keep signing: it was not paid, try again")


def _finish_pending(wallet: Wallet, key: Ed25519PrivateKey, wait_seconds: float) -> list[Entry]:
    """Raise UserError unless all that the account signed before is final now, or lost its slot; those that did."""
    before = find_pending(wallet)
    while pending := find_pending(wallet):
        if isinstance(decode_record(wallet.federation, pending[0].record).body, Rotate):
            raise UserError("a new key of this wallet is on its way: finish that first with `allmende wallet rotate`")
        try:
            outcome = finish_entry(wallet, key, pending[0], wait_seconds)
        except Unreachable as error:
            raise Unreachable(f"nothing new was signed, since an earlier record is pending: {error}") from error
        if is_open(outcome.entry):
            why = f" ({outcome.refusal})" if outcome.refusal else ""
            raise UserError(
                f"an earlier record of this wallet is not final yet{why}, so nothing new was signed: "
                "see `allmende wallet pending`"
            )
    return list_lost(wallet, before)


def send_transfer(
    wallet: Wallet,
    key: Ed25519PrivateKey,
    payment: Payment,
    wait_seconds: float = WAIT_SECONDS,
    entry: Entry | None = None,
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
        entry,
    )


def find_same_payment(wallet: Wallet, payment: Payment) -> Entry | None:
    """A pending record that pays exactly this: most likely the same command, run again after a crash.

    What this wallet proposed of another machine's does not count: that is another command.
    """
    for entry in find_pending(wallet):
        body = decode_record(wallet.federation, entry.record).body
        if entry.attempt == 0 and isinstance(body, Transfer) and body.memo == payment.memo:
            paid = {output.account for output in body.outputs}, sum(output.amount for output in body.outputs)
            if paid == ({payment.account}, payment.amount):
                return entry
    return None


def resend_pending(wallet: Wallet, wait_seconds: float = WAIT_SECONDS) -> list[Outcome]:
    """Send every pending record of the wallet again, byte for byte, and wait for their receipts."""
    outcomes = []
    for entry in wallet.journal.pending():
        known = reread(wallet, entry)  # what became final before it may have decided it, too
        outcomes.append(submit_entry(wallet, entry, wait_seconds) if is_open(known) else Outcome(known, None, ""))
    return outcomes
