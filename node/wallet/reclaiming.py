"""Taking back what was put aside for a job whose donor never settled (spec 7.10).

Three steps, each of which may be repeated: ask on the account's own chain; wait, while the donor has the hold's grace
to settle after all, on the members' clocks of running time; take everything back in the hold's one slot. A settlement
that comes first wins. The reclaim is signed only when the node says that the grace is over: signed earlier, its epoch
could end while it waits, and then nobody would vote for it.
"""

from __future__ import annotations

import time
from enum import StrEnum
from typing import TYPE_CHECKING, NamedTuple

from node.addresses import Kind as AddressKind
from node.addresses import decode_address, encode_address
from node.errors import Refused, Unreachable, UserError
from node.hold_slots import HoldSlot
from node.wallet.job_ends import look_for_end, take_end
from node.wallet.job_records import WalletJob, find_signed
from node.wallet.journal import Entry
from node.wallet.payments import check_key, spend
from node.wallet.sending import WAIT_SECONDS, read_account, read_final_record, submit_entry
from protocol.records import (
    NONE,
    Kind,
    Reclaim,
    ReclaimRequest,
    Record,
    RecordDraft,
    account_scope,
    decode_record,
    hold_scope,
    sign_record,
)
from protocol.turns import HOLD_WRITERS, PAYER_TURN

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    from node.wallet.wallet import Wallet

POLL_SECONDS = 5.0
TURN_WAIT_SECONDS = 10
"""How long a turn waits for promises, and for its record to become final."""


class ReclaimState(StrEnum):
    """How far it came. The last two are ends."""

    WAITING = "WAITING"
    """Asked for; the donor may still settle."""
    SENT = "SENT"
    """The reclaim is signed and on its way; some members may count less running time than the node."""
    CONTESTED = "CONTESTED"
    """Payee and payer both signed for the slot, and neither record has a quorum yet; each has its turns to free it."""
    RECLAIMED = "RECLAIMED"
    SETTLED = "SETTLED"


class Reclaimed(NamedTuple):
    """What came of it."""

    state: ReclaimState
    seconds_left: int | None = None
    """While waiting: running seconds of the members until the grace is over, as the node counts them."""
    lost: tuple[Entry, ...] = ()
    """Records of earlier commands that lost their slots meanwhile."""


def check_reclaimable(job: WalletJob) -> None:
    """Raises: UserError when nothing is put aside for the job, as far as the wallet knows."""
    if not job.hold:
        raise UserError(
            f"nothing is known to be put aside for job {job.job_id} ({job.state}): `allmende job logs -f {job.job_id}`"
        )


def reclaim_job(
    wallet: Wallet, key: Ed25519PrivateKey, job: WalletJob, wait_seconds: float = WAIT_SECONDS
) -> Reclaimed:
    """Ask, wait as long as it may, take back. Repeating it goes on where it was.

    Raises: UserError; Unreachable; Refused.
    """
    deadline = time.monotonic() + wait_seconds
    check_reclaimable(job)
    if look_for_end(wallet, job):
        return Reclaimed(ReclaimState(job.state))
    request, lost = _ask(wallet, key, job, wait_seconds)
    while not look_for_end(wallet, job):
        answer = wallet.client.get_job(encode_address(AddressKind.RECORD, job.hold))
        left = answer.reclaim_seconds_left if answer is not None else None
        remaining = deadline - time.monotonic()
        if left == 0:
            return Reclaimed(_end_hold(wallet, key, job, request, deadline), None, lost)
        if remaining < (left or 0) or remaining <= 0:
            return Reclaimed(ReclaimState.WAITING, left, lost)
        time.sleep(min(left or 1, remaining, POLL_SECONDS))
    return Reclaimed(ReclaimState(job.state), None, lost)


def _ask(
    wallet: Wallet, key: Ed25519PrivateKey, job: WalletJob, wait_seconds: float
) -> tuple[bytes, tuple[Entry, ...]]:
    """The final reclaim-request for the hold, this machine's or another's, and what was lost on the way."""
    answer = wallet.client.get_job(encode_address(AddressKind.RECORD, job.hold))
    if answer is not None and answer.reclaim_request is not None:
        proven = read_final_record(wallet, decode_address(AddressKind.RECORD, answer.reclaim_request))
        wanted = account_scope(wallet.account), ReclaimRequest(job.hold)
        if proven is None or (proven.record.scope, proven.record.body) != wanted:
            raise UserError(f"{wallet.node_url} claims a request of this account and can't prove it: ask another node")
        return proven.record.id, ()
    purpose = f"ask for the credits of job {job.job_id} ({job.name})"
    signed = find_signed(wallet, purpose)
    outcome = spend(
        wallet, key, Kind.RECLAIM_REQUEST, purpose, lambda account: ReclaimRequest(job.hold), wait_seconds, signed
    )
    if outcome.verified is None and outcome.refusal:
        raise Refused(f"{wallet.node_url} refused it: {outcome.refusal}; `allmende wallet unlock` frees the account")
    if outcome.verified is None:
        raise Unreachable(f"the request is signed and not final yet: `allmende job reclaim {job.job_id}` goes on")
    return outcome.entry.record_id, outcome.lost


def _end_hold(wallet: Wallet, key: Ed25519PrivateKey, job: WalletJob, request: bytes, deadline: float) -> ReclaimState:
    """Send the reclaim until the hold has ended or the time is over; where the donor claims the slot, too, take the
    payer's turns at it."""
    slot: HoldSlot | None = None
    while True:
        entry = _sign_reclaim(wallet, key, job, request)
        state = _send(wallet, job, entry, max(0.0, deadline - time.monotonic()) / 2)
        left = deadline - time.monotonic()
        if job.is_over or left <= 0:
            return state
        slot = slot or _open_slot(wallet, key, entry)
        with wallet.lock():
            record = decode_record(wallet.federation, entry.record)
            receipt = slot.take_turn(wallet.client, record, int(min(left, TURN_WAIT_SECONDS)))
        if receipt is not None:
            take_end(wallet, job, receipt)
            return ReclaimState(job.state)
        time.sleep(min(left, POLL_SECONDS))


def _open_slot(wallet: Wallet, key: Ed25519PrivateKey, entry: Entry) -> HoldSlot:
    def keep(record: Record, attempt: int) -> None:
        wallet.journal.add(*record.slot, record.id, record.encoded, entry.purpose, attempt=attempt)

    return HoldSlot(wallet.federation, PAYER_TURN, key, entry.attempt, keep)


def _sign_reclaim(wallet: Wallet, key: Ed25519PrivateKey, job: WalletJob, request: bytes) -> Entry:
    """The reclaim that this wallet signed last for the hold's slot; another one when its epoch has passed."""
    scope = hold_scope(job.hold)
    with wallet.lock():
        signed = wallet.journal.slot(scope, 0)
        last = max(signed, key=lambda entry: entry.attempt, default=None)
        epochs = wallet.charter.compute_open_epochs(wallet.now())
        if last is not None and decode_record(wallet.federation, last.record).epoch in epochs:
            return last
        account = read_account(wallet)
        check_key(wallet, account, key)
        signers = (key.public_key().public_bytes_raw(),)
        draft = RecordDraft(Kind.RECLAIM, account.epoch, scope, 0, NONE, Reclaim(request), signers)
        record = sign_record(wallet.federation, draft, [key])
        purpose = f"take back the credits of job {job.job_id} ({job.name})"
        attempt = last.attempt + HOLD_WRITERS if last is not None else 0
        return wallet.journal.add(scope, 0, record.id, record.encoded, purpose, attempt=attempt)


def _send(wallet: Wallet, job: WalletJob, entry: Entry, wait_seconds: float) -> ReclaimState:
    outcome = submit_entry(wallet, entry, wait_seconds)
    if outcome.verified is not None and outcome.entry.receipt is not None:
        take_end(wallet, job, outcome.entry.receipt)
    if look_for_end(wallet, job):
        return ReclaimState(job.state)
    if outcome.is_contested:
        return ReclaimState.CONTESTED
    if outcome.refusal and not outcome.is_waiting:
        raise Refused(f"{wallet.node_url} refused it: {outcome.refusal}")
    return ReclaimState.SENT
