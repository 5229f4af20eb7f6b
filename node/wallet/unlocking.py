"""Freeing the account's next slot when several records claim it: two machines of one wallet, or a restored one.

The wallet asks the members for another attempt, waits until a quorum has promised to leave the earlier ones, and
proposes one record (spec 5.6): the one that the promises force, else the one with the lowest id that is known, so that
two machines mostly agree. What it does not have to believe: a node hands over records and requests, and only those
count that this wallet's own key signed. The members check all the rest.

The order is the safety. A record is in the journal under (slot, attempt) before its proposal is signed, and every
attempt is asked for once and no more: whatever a command dies at, nothing else is ever signed there.
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterable
from typing import TYPE_CHECKING, NamedTuple

from node import api
from node.addresses import Kind as AddressKind
from node.addresses import decode_address, encode_address
from node.errors import Refused, Unreachable, UserError
from node.hold_slots import find_forced
from node.wallet.journal import Entry, State
from node.wallet.lots import Lot, choose_lots, read_lots
from node.wallet.sending import (
    WAIT_SECONDS,
    Outcome,
    find_pending,
    handle_receipt,
    is_open,
    read_account,
    reread,
    settle_slot,
    submit_entry,
)
from node.wallet.verify import verify_final
from protocol.errors import InvalidInput, Reason, Rejected
from protocol.records import (
    NONE,
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
from protocol.statements import (
    ATTEMPT_MAX,
    decode_unlock_request,
    encode_signed,
    is_signed_by_writer,
    sign_slot_proposal,
    sign_unlock_request,
)

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    from node.wallet.wallet import Wallet

STEP_SECONDS = 4
"""How long the first attempt waits for promises, and then for its certificate; each further one waits twice as long, so
however slow the network is, some attempt is long enough. At most WAIT_SECONDS_MAX of the API."""

PAUSE_SECONDS_FIRST = 0.5
PAUSE_SECONDS_MAX = 8.0
"""Between two attempts a random part of a pause that doubles: two machines must not overtake each other for ever."""

POLL_SECONDS = 0.2
FENCE_MILLICREDITS = 1
FENCE_PURPOSE = "0.001 credits to yourself, which closes what another machine may have signed"
OTHER_PURPOSE = "signed on another machine of this wallet"
_PASSING_REASONS = frozenset({Reason.ATTEMPT_CLOSED, Reason.CHARTER_CHANGING, Reason.SLOT_TAKEN})
"""Refusals that say nothing against the proposed record."""


class Freed(NamedTuple):
    """How an unlock ended."""

    sequence: int
    record: Record | None
    """What became final in the slot, with a receipt that the wallet checked; None: nothing in time."""
    attempts: int
    """How many attempts this command asked for."""


class NextSlot(NamedTuple):
    """The account's next slot, before anything is asked for."""

    sequence: int
    own: tuple[Entry, ...]
    """What this wallet signed for it and is not known to be final."""
    found: api.AccountSlot

    @property
    def is_claimed(self) -> bool:
        """Whether anything is to be freed: a record claims the slot, or somebody asked for an attempt."""
        return bool(self.own or self.found.records or self.found.request)

    @property
    def claims_count(self) -> int:
        """How many records claim it, of which this wallet or the node knows."""
        return len({entry.record for entry in self.own} | set(self.found.records))


def finish_entry(wallet: Wallet, key: Ed25519PrivateKey, entry: Entry, wait_seconds: float = WAIT_SECONDS) -> Outcome:
    """Send a journalled record, and free its slot if it is contested; what became of the record.

    It is final, or rejected because another record is provably final in its slot, or still open.

    Raises: Unreachable; Refused.
    """
    outcome = submit_entry(wallet, entry, wait_seconds)
    if not (outcome.is_contested and is_open(outcome.entry)):
        return outcome
    unlock_slot(wallet, key, entry.sequence, decode_record(wallet.federation, entry.record), wait_seconds)
    found = reread(wallet, entry)
    if found.receipt is None:
        return Outcome(found, None, found.reason)
    return Outcome(found, verify_final(wallet.charters, found.receipt, entry.record), "")


def unlock_account(wallet: Wallet, key: Ed25519PrivateKey, wait_seconds: float = WAIT_SECONDS) -> Freed | None:
    """Free the account's next slot, whatever was signed for it here or elsewhere.

    Afterwards nothing that any machine signed for it before can become final later: some record has the slot. When
    nothing is known of it, that record is a tiny payment to the account itself. None when there is nothing to do: no
    record claims the slot and no credits could be spent in it.

    Raises: UserError; Unreachable; Refused.
    """
    return free_slot(wallet, key, look_at_next_slot(wallet), wait_seconds)


def look_at_next_slot(wallet: Wallet) -> NextSlot:
    """What is known of the account's next slot; what became final before it is written down. Signs nothing.

    Raises: UserError; Unreachable.
    """
    sequence = read_account(wallet).next_sequence
    for entry in find_pending(wallet):
        if entry.sequence < sequence:
            settle_slot(wallet, entry.sequence)
    own = tuple(entry for entry in find_pending(wallet) if entry.sequence == sequence)
    return NextSlot(sequence, own, wallet.client.get_slot(wallet.address))


def free_slot(
    wallet: Wallet, key: Ed25519PrivateKey, slot: NextSlot, wait_seconds: float = WAIT_SECONDS
) -> Freed | None:
    """Free that slot; None when nothing claims it and no credits could be spent in it. Raises: as `unlock_account`."""
    if not slot.is_claimed and _choose_fence_lot(wallet, read_account(wallet)) is None:
        return None
    wish = decode_record(wallet.federation, slot.own[0].record) if slot.own else None
    return unlock_slot(wallet, key, slot.sequence, wish, wait_seconds)


def unlock_slot(
    wallet: Wallet,
    key: Ed25519PrivateKey,
    sequence: int,
    wish: Record | None,
    wait_seconds: float = WAIT_SECONDS,
) -> Freed:
    """Ask for one attempt after another until a record is final in the slot, or the time is over.

    Other commands of this wallet sign nothing during an attempt, and may between two.

    Raises: Unreachable when the node never answered; Refused.
    """
    unlocking = _Unlocking(wallet, key, sequence, wish)
    deadline = time.monotonic() + wait_seconds
    pause = PAUSE_SECONDS_FIRST
    while True:
        record = None
        try:
            # Perhaps another machine is about to free the slot, or its record to become final: give it a moment.
            record = unlocking.wait_decided(random.uniform(0, pause))
            if record is None:
                with wallet.lock():
                    record = unlocking.look() or unlocking.attempt(deadline - time.monotonic())
        except Unreachable:
            if time.monotonic() > deadline:
                raise
            time.sleep(random.uniform(0, pause))
        if record is not None or time.monotonic() > deadline:
            return Freed(sequence, record, unlocking.attempts)
        pause = min(2 * pause, PAUSE_SECONDS_MAX)


class _Unlocking:
    """One command's work on one slot."""

    def __init__(self, wallet: Wallet, key: Ed25519PrivateKey, sequence: int, wish: Record | None) -> None:
        self.attempts = 0
        self._wallet = wallet
        self._key = key
        self._public_key = key.public_key().public_bytes_raw()
        self._slot = (account_scope(wallet.account), sequence)
        self._wish = wish if wish is not None and self._is_signed_by_us(wish) else None
        self._asked = 0
        self._unfit: set[bytes] = set()
        """Records that a rule forbids now."""
        self._claims: dict[bytes, Record] = {}
        """Every record that is known to claim the slot, signed by the wallet's key."""

    # -- looking ----------------------------------------------------------------------------------------------------

    def wait_decided(self, seconds: float) -> Record | None:
        """What became final in the slot meanwhile."""
        deadline = time.monotonic() + seconds
        while (record := self.look()) is None and time.monotonic() < deadline:
            time.sleep(POLL_SECONDS)
        return record

    def look(self) -> Record | None:
        """Note who claims the slot by now; the final record when it is decided."""
        slot = self._wallet.client.get_slot(self._wallet.address)
        if slot.sequence > self._slot[1]:
            return settle_slot(self._wallet, self._slot[1])
        if slot.sequence == self._slot[1]:
            self._asked = max(self._asked, self._check_request(slot.request))
            self._note_claims(slot.records)
        return None

    def _check_request(self, encoded: bytes | None) -> int:
        """The attempt that a request asks for, if a machine of this wallet signed it."""
        if not encoded:
            return 0
        try:
            request = decode_unlock_request(encoded)
        except InvalidInput:
            return 0
        is_own = request.slot == self._slot and request.signer == self._public_key
        return request.attempt if is_own and is_signed_by_writer(self._wallet.federation, request) else 0

    def _note_claims(self, records: Iterable[bytes]) -> None:
        own = self._wallet.journal.slot(*self._slot)
        for encoded in (*(entry.record for entry in own), *records):
            try:
                record = decode_record(self._wallet.federation, encoded)
            except InvalidInput:
                continue
            is_claim = record.slot == self._slot
            if is_claim and self._is_signed_by_us(record) and has_valid_signatures(record):
                self._claims[record.id] = record

    def _is_signed_by_us(self, record: Record) -> bool:
        """By the key in force: what a key before a rotation signed, no member votes for any more."""
        return record.signers[0] == self._public_key

    # -- one attempt ------------------------------------------------------------------------------------------------

    def attempt(self, seconds_left: float) -> Record | None:
        """Ask, wait for promises, propose; the record that became final, or None: another attempt is needed."""
        wallet = self._wallet
        step_seconds = int(min(STEP_SECONDS << min(self.attempts, 8), api.WAIT_SECONDS_MAX, max(1.0, seconds_left)))
        attempt = max([self._asked, *(entry.attempt for entry in wallet.journal.slot(*self._slot))]) + 1
        if attempt > ATTEMPT_MAX:
            raise UserError(
                f"place {self._slot[1]} of this account was unlocked too often: wait until the charter changes"
            )
        self._asked = attempt
        self.attempts += 1
        request = sign_unlock_request(wallet.federation, self._slot, attempt, self._public_key, self._key)
        try:
            promises = wallet.client.post_unlock(encode_signed(request), wait=step_seconds)
        except Rejected as rejection:
            self._tell_if_hopeless(rejection)
            return None
        self._note_claims(promises.records)
        if promises.is_decided or not promises.has_quorum:
            return None
        record = self._choose_record(promises)
        return self._propose(record, attempt, promises, step_seconds) if record is not None else None

    def _tell_if_hopeless(self, rejection: Rejected) -> None:
        if rejection.reason in (Reason.WRITER_WRONG, Reason.SIGNATURE_INVALID):
            raise Refused(f"{self._wallet.node_url} does not unlock this account: {rejection}") from rejection

    def _choose_record(self, promises: api.Promises) -> Record | None:
        """The forced record; else the lowest id of those that a member may vote for now; else a fence."""
        forced = find_forced(promises)
        if forced is not None:
            return self._claims.get(forced)
        known = {record.id: record for record in (*self._claims.values(), *([self._wish] if self._wish else ()))}
        epochs = self._wallet.charter.compute_open_epochs(self._wallet.now())
        fit = [record for record in known.values() if record.epoch in epochs and record.id not in self._unfit]
        return min(fit, key=lambda record: record.id) if fit else self._sign_fence()

    def _sign_fence(self) -> Record | None:
        """The smallest payment to the account itself, or None when it has no credits to spend."""
        account = read_account(self._wallet)
        lot = _choose_fence_lot(self._wallet, account)
        if lot is None or account.next_sequence != self._slot[1]:
            return None
        head = decode_address(AddressKind.RECORD, account.head) if account.head else NONE
        output = Output(self._wallet.account, lot.program, lot.expiry_epoch, FENCE_MILLICREDITS)
        body = Transfer((output,), "")
        draft = RecordDraft(Kind.TRANSFER, account.epoch, *self._slot, head, body, (self._public_key,))
        return sign_record(self._wallet.federation, draft, [self._key])

    def _propose(self, record: Record, attempt: int, promises: api.Promises, seconds: int) -> Record | None:
        wallet = self._wallet
        deadline = time.monotonic() + seconds
        known = wallet.journal.find(record.id)
        purpose = known.purpose if known else OTHER_PURPOSE if record.id in self._claims else FENCE_PURPOSE
        entry = wallet.journal.add(*self._slot, record.id, record.encoded, purpose, attempt=attempt)
        batches = [promise.batch for promise in promises.promises]
        proposal = encode_signed(
            sign_slot_proposal(wallet.federation, self._slot, attempt, record.id, batches, self._public_key, self._key)
        )
        while True:
            try:
                answer = wallet.client.post_proposal(proposal, record.encoded, wait=1)
            except Rejected as rejection:
                self._tell_if_hopeless(rejection)
                if rejection.reason not in _PASSING_REASONS:
                    self._unfit.add(record.id)
                return self.look()
            wallet.journal.mark_sent(record.id)
            if answer.receipt is not None and handle_receipt(wallet, entry, answer.receipt).verified is not None:
                return record
            decided = self.look()
            if decided is not None or self._asked > attempt or time.monotonic() > deadline:
                return decided


def _choose_fence_lot(wallet: Wallet, account: api.Account) -> Lot | None:
    """The lot that a fence is paid from: the one that expires soonest."""
    try:
        lots = read_lots(account)
        return choose_lots(lots, FENCE_MILLICREDITS, account.epoch, lambda lot: True, "moved")[0][0]
    except UserError:
        return None


def list_lost(wallet: Wallet, entries: Iterable[Entry]) -> list[Entry]:
    """Those of this wallet's own records that can never become final any more: what they were for was not done."""
    known = [reread(wallet, entry) for entry in entries if entry.attempt == 0]
    return [entry for entry in known if entry.state is State.REJECTED]


def describe_freed(freed: Freed | None) -> str:
    """One line for people."""
    if freed is None:
        return "Nothing claims the account's next place, and it holds no credits: there is nothing to unlock."
    if freed.record is None:
        return (
            f"Place {freed.sequence} is not free yet: too few members answered, or another machine of this wallet "
            "is at it, too. `allmende wallet unlock` goes on."
        )
    name = encode_address(AddressKind.RECORD, freed.record.id)
    if is_fence(freed.record):
        return (
            f"Place {freed.sequence} is closed by a payment of 0.001 credits to yourself ({name}), so nothing that "
            "another machine signed for it can become final later."
        )
    return f"{name} is final in place {freed.sequence}; whatever else was signed for that place never will be."


def is_fence(record: Record) -> bool:
    """Whether a record only moves credits from an account to itself."""
    return isinstance(record.body, Transfer) and {output.account for output in record.body.outputs} == {record.account}
