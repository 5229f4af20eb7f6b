"""Records that wallets handed in and that are not in a batch yet.

Nothing here is durable, and nothing need be: a record is acknowledged by its receipt of finality alone, and a wallet
sends the same bytes again until it has one.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from typing import NamedTuple

from node.errors import UserError
from node.owner_rates import RECORDS_PER_MINUTE_MAX, OwnerRates
from protocol.causes import get_outgoing
from protocol.errors import WAITING_REASONS, Reason, Rejected
from protocol.limits import BATCH_BYTES_MAX, RECORDS_PER_BATCH_MAX
from protocol.records import Record
from protocol.rules import Circumstances
from protocol.voting import Voter

SUBMISSIONS_MAX = 8192
SUBMISSIONS_PER_SCOPE_MAX = 8
"""An honest writer has one record on its way, and perhaps the next ones behind it."""

WAITING_SECONDS_MAX = 60
"""How long a record may wait here for its predecessor or its funds."""

REJECTIONS_KEPT_MAX = 1024
RECORD_BYTES_PER_BATCH = BATCH_BYTES_MAX * 3 // 4
"""The rest of a batch is for statements and heads."""


class Busy(UserError):
    """The node has as much work as it can hold; the same request may be sent again in a moment."""

    exit_status = 3


class Submission(NamedTuple):
    record: Record
    deadline: float


class Submissions:
    """The queue between wallets and the member's next batch, in order of arrival."""

    def __init__(self, voter: Voter) -> None:
        self._voter = voter
        self._queue: OrderedDict[bytes, Submission] = OrderedDict()
        self._queued_of: Counter[bytes] = Counter()
        self._owner_rates = OwnerRates()
        self._rejections: OrderedDict[bytes, Rejected] = OrderedDict()
        self._newly_rejected: list[bytes] = []
        self.has_ready = False
        """True when the last batch had no room for all that could go."""

    def __contains__(self, record_id: object) -> bool:
        return record_id in self._queue

    def __len__(self) -> int:
        return len(self._queue) + len(self._rejections)

    def get(self, record_id: bytes) -> Record | None:
        """A record that waits here."""
        submission = self._queue.get(record_id)
        return submission.record if submission else None

    def list_of(self, account: bytes) -> list[Record]:
        """The records of an account that wait here."""
        return [submission.record for submission in self._queue.values() if submission.record.account == account]

    def add(self, record: Record, circumstances: Circumstances, now: float) -> None:
        """Queue a record whose signatures hold. Raises: Rejected when it can never pass; Busy."""
        ledger = self._voter.replica.ledger
        if get_outgoing(record) and record.account not in ledger.balances:
            raise Rejected(Reason.FUNDS_MISSING, "the account has never received anything")
        try:
            self._voter.check_introduction(record, circumstances)
        except Rejected as rejection:
            if rejection.reason not in WAITING_REASONS:
                raise
        if self._queued_of[record.scope] >= SUBMISSIONS_PER_SCOPE_MAX:
            raise Busy("too many records of this account wait already: send them one after the other")
        if len(self._queue) >= SUBMISSIONS_MAX:
            raise Busy("this node is busy: send the same record again in a moment")
        self.count_in(record.scope, circumstances)
        self._rejections.pop(record.id, None)
        self._queue[record.id] = Submission(record, now + WAITING_SECONDS_MAX)
        self._queued_of[record.scope] += 1

    def count_in(self, scope: bytes, circumstances: Circumstances) -> None:
        """Count what an owner hands in, once it is known to be the owner's. Raises: Busy when it is too often."""
        if not self._owner_rates.may_hand_in(self._voter.replica.charter, scope, circumstances.running_seconds):
            too_much = f"this account hands in more than {RECORDS_PER_MINUTE_MAX} records a minute"
            raise Busy(f"{too_much}: wait a moment, then go on")

    def take(
        self, circumstances: Circumstances, now: float, bytes_used: int = 0, records_used: int = 0
    ) -> list[Record]:
        """The records that the next batch introduces, each checked once more at this moment; so many bytes and places
        of their room are used."""
        taken: list[Record] = []
        size = bytes_used
        self.has_ready = False
        for record_id, (record, deadline) in list(self._queue.items()):
            if not self._voter.is_undecided(record):
                self.discard(record_id)
                continue
            try:
                self._voter.check_introduction(record, circumstances)
            except Rejected as rejection:
                if rejection.reason not in WAITING_REASONS or now > deadline:
                    self._reject(record_id, rejection)
                continue
            size += len(record.encoded) + 3
            if size > RECORD_BYTES_PER_BATCH or len(taken) + records_used >= RECORDS_PER_BATCH_MAX:
                self.has_ready = True
                break
            self._voter.note_introduction(record)
            taken.append(record)
            self.discard(record_id)
        return taken

    def discard(self, record_id: bytes) -> None:
        """The record is on its way or final, whoever introduced it."""
        submission = self._queue.pop(record_id, None)
        if submission is not None:
            scope = submission.record.scope
            self._queued_of[scope] -= 1
            if not self._queued_of[scope]:
                del self._queued_of[scope]

    def _reject(self, record_id: bytes, rejection: Rejected) -> None:
        self.discard(record_id)
        self._newly_rejected.append(record_id)
        self._rejections[record_id] = rejection
        if len(self._rejections) > REJECTIONS_KEPT_MAX:
            self._rejections.popitem(last=False)

    def take_rejected(self) -> list[bytes]:
        """Ids of the records given up since the last call."""
        rejected, self._newly_rejected = self._newly_rejected, []
        return rejected

    def raise_failure(self, record_id: bytes) -> None:
        """Raise why a record was given up, if it was."""
        rejection = self._rejections.get(record_id)
        if rejection is not None:
            raise rejection
