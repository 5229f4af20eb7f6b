"""Whether this member may sign now, and with which key.

It signs under a charter version only when that version names it and its vote key lies here, when no batch of its own
turned up that its store lacks (then it was restored from a backup, and waits for the next version, spec 9.6), and after
a start only when members that make a quorum with it have told it what they have.
"""

from __future__ import annotations

import logging

import trio

from node.errors import UserError
from node.keystore import Key
from node.storage.store import MarkKind, Store
from node.vote_keys import VoteKeys
from protocol.voting import Voter

log = logging.getLogger("allmende.member")


class Signing:
    """The standing of one member as a signer, by charter version."""

    def __init__(self, voter: Voter, vote_keys: VoteKeys, store: Store) -> None:
        self._voter = voter
        self._replica = voter.replica
        self._vote_keys = vote_keys
        self._store = store
        self._heard: set[int] = {voter.member}
        self._has_heard_quorum = trio.Event()
        self.key: Key | None = None
        """The vote key of the version in force; None when it is not here, or the version does not name us."""
        self.is_silenced = False
        """True once a batch of ours turned up that this store does not hold: see `silence`."""
        self._choose_key()

    def enter_version(self) -> None:
        """The voter speaks under another version now, or the node has just started: take that version's key, and
        erase those that only versions before it named."""
        self.is_silenced = self._store.get_marks(MarkKind.SILENCED).get(b"", 0) > self._voter.version
        self._choose_key()
        named = self._list_own_keys()
        wanted = {key for version, key in named.items() if version >= self._voter.version}
        self._vote_keys.erase(set(named.values()) - wanted)
        self._note_quorum()
        if (obstacle := self.find_obstacle()) is not None:
            log.log(self._weigh_obstacle(), "%s", obstacle)

    def _choose_key(self) -> None:
        member = self._replica.ledger.charters[self._voter.version].members.get(self._voter.member)
        self.key = None if member is None else self._vote_keys.find(member.vote_key)

    def _list_own_keys(self) -> dict[int, bytes]:
        """Charter version -> the vote key that it names for this member."""
        charters = self._replica.ledger.charters.items()
        own = self._voter.member
        return {version: charter.members[own].vote_key for version, charter in charters if own in charter.members}

    def get_fresh_vote_key(self) -> bytes:
        """The public half of the vote key for the next version, which lies here already."""
        return self._vote_keys.get_fresh(set(self._list_own_keys().values()))

    def silence(self) -> None:
        """Sign nothing more: somebody holds a batch of ours that this store lacks, so it was restored from a backup.

        What else was said after the backup is unknown; signing on could contradict it. For the same reason every vote
        key of the backup goes, the one for the next version, too (spec 9.6).
        """
        if not self.is_silenced:
            self.is_silenced = True
            self._store.put_marks(MarkKind.SILENCED, {b"": self._voter.version + 1})
            self._vote_keys.erase_all()
            self.key = None
            log.error("this node's store is older than its own log: it signs nothing more under this charter")

    def find_obstacle(self) -> str | None:
        """Why this member signs nothing under the version in force, in words; None when it may."""
        if not self._is_named:
            if self._was_named:
                return "this institution is no member of the federation any more: its node reads on and signs nothing"
            return "this institution is no member yet: its node signs when a charter that names it is in force"
        if self.is_silenced:
            return (
                "this node's store is older than its own log, so it signs nothing: it was restored from a backup; it "
                "signs again under the next charter, with a new vote key"
            )
        if self.key is None:
            return (
                "the vote key that the charter in force names is not here, so this node signs nothing: put it back, or "
                "ask the others for an amendment that names a new one"
            )
        return None

    def _weigh_obstacle(self) -> int:
        """The level at which it is logged. Who joins reads its way through versions that don't name it, and who was
        let go has a sound node; a key that is not where it should be is an error."""
        if self._is_named:
            return logging.ERROR
        return logging.WARNING if self._was_named else logging.INFO

    @property
    def _is_named(self) -> bool:
        return self._voter.member in self._replica.ledger.charters[self._voter.version].members

    @property
    def _was_named(self) -> bool:
        charters = self._replica.ledger.charters
        return any(self._voter.member in charters[version].members for version in range(self._voter.version))

    def check(self, remedy: str = "others' nodes take what you want to hand in") -> None:
        """Raises: UserError, with what to do instead, when this member signs nothing under the version in force."""
        if (obstacle := self.find_obstacle()) is not None:
            raise UserError(f"{obstacle} ({remedy})")

    def note_heard(self, number: int) -> None:
        """All that this member has was fetched from it since the start."""
        self._heard.add(number)
        self._note_quorum()

    def _note_quorum(self) -> None:
        charter = self._replica.charter
        if sum(charter.weights.get(heard, 0) for heard in self._heard) >= charter.quorum:
            self._has_heard_quorum.set()

    @property
    def has_heard_quorum(self) -> bool:
        """True when members that make a quorum with us have told what they have, since the start."""
        return self._has_heard_quorum.is_set()

    async def wait_heard_quorum(self) -> None:
        """Should our store be older than our own log, one of a quorum most likely shows it (spec 9.6)."""
        await self._has_heard_quorum.wait()
