"""One member's machine: a disk, a clock that may be wrong, and a process that may die and start again.

The process is the real `LedgerMember`; the machine does what `node/daemon.py` does around it. It speaks soon after
there is news, pushes its batches to everybody, and pulls from the others what it lacks (spec 10.3), by the functions
of `protocol/messages.py`. An answer holds few batches, so that catching up goes on piece by piece.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from node.errors import UserError
from node.member import LedgerMember
from node.running_clock import RunningClock
from protocol.batches import decode_batch
from protocol.contests import PromiseGiven
from protocol.errors import Rejected
from protocol.identifiers import Slot
from protocol.messages import (
    LogHead,
    LogLocator,
    compute_frontier_digest,
    compute_locators,
    compute_missing,
    get_heads,
)
from protocol.replica import Admission
from tests.simulation.disks import Disk, PowerCut
from tests.simulation.stages import START_SECONDS

if TYPE_CHECKING:
    from tests.simulation.world import World

PULL_SECONDS = 1.5
"""Between two pulls of a member that lacks nothing it knows of."""

FIRST_PULL_SECONDS = 0.1
WAKE_SECONDS = 0.2
PIECE_BATCHES = 12
RESTART_SECONDS = 1.0
WATCH_SECONDS = 1.0


class Known(NamedTuple):
    """How many batches somebody has of a member's log under a charter version."""

    version: int
    batches: int


NOTHING_KNOWN = Known(0, 0)


class WatchedMember(LedgerMember):
    """A member whose every admission and every entry into a charter version is shown to the checkers."""

    machine: Machine

    def _note_admission(self, admission: Admission) -> None:
        super()._note_admission(admission)
        self.machine.world.checkers.note_admission(self.machine, admission)

    def _enter_version(self) -> None:
        super()._enter_version()
        self.machine.world.checkers.note_entry(self.machine)


class Machine:
    """A correct member's machine."""

    is_faulty = False

    def __init__(self, world: World, number: int, disk: Disk) -> None:
        self.world = world
        self.number = number
        self.disk = disk
        self.vote_keys = world.stage.get_vote_keys(number)
        self.clock_offset = 0.0
        self.starts = 0
        self.forgotten_version = -1
        """Once its disk was an old backup: what it says up to this charter version is not a correct member's word."""
        self.is_starting = False
        self.shown_version = -1
        """The highest charter version of which a batch of its own came in that an old disk had lost."""
        self._member: WatchedMember | None = None
        self._is_speaking_soon = False
        self._is_pulling_soon = False
        self._wanted: set[int] = set()
        self.known_of_us: dict[int, Known] = {}
        """Peer -> what it had of our newest log when it answered in this process's life."""

    # -- life -----------------------------------------------------------------------------------------------------

    @property
    def is_set_back(self) -> bool:
        """True once its disk was an old backup."""
        return self.forgotten_version >= 0

    @property
    def may_speak(self) -> bool:
        """True when the charter in force names this member and its key is here."""
        return self.is_up and self.member.signing.find_obstacle() is None

    @property
    def is_up(self) -> bool:
        """True while the process runs."""
        return self._member is not None

    @property
    def member(self) -> WatchedMember:
        """The process."""
        assert self._member is not None
        return self._member

    def read_clock(self) -> float:
        """Unix seconds as this machine sees them."""
        return START_SECONDS + self.world.now + self.world.leap_seconds + self.clock_offset

    def read_steady_clock(self) -> float:
        """Seconds of a clock that never jumps."""
        return self.world.now

    def start(self) -> None:
        """Start the process; everything follows from the disk."""
        stage = self.world.stage
        self.starts += 1
        self.known_of_us.clear()
        member = WatchedMember(stage.founded, self.number, self.vote_keys, self.disk, self.read_clock)
        member.running_clock = RunningClock(self.disk, self.read_steady_clock)
        member.machine = self
        member.on_spoken.append(self.push)
        member.on_missing_past.append(lambda peer: self._want(int(peer)))
        self._member = member
        self.is_starting = True
        self.run(member.restore_at_once)
        self.is_starting = False
        if self.is_up:
            self.world.checkers.note_start(self)
            self._pull_soon(FIRST_PULL_SECONDS)

    def stop(self) -> None:
        """The process dies: what was not on the disk is gone."""
        self._member = None

    def run(self, work: Callable[[], object]) -> None:
        """Do something in the process, unless it is down; a power cut ends it, and it starts again later."""
        if not self.is_up:
            return
        try:
            work()
        except PowerCut:
            self.world.note("power cuts", f"member {self.number} loses power {self.disk.moment} a write")
            self.stop()
            self.world.after(RESTART_SECONDS * self.world.random.random(), self.restart)

    def restart(self) -> None:
        """Start again, unless somebody did before."""
        if not self.is_up:
            self.world.tell(f"member {self.number} starts again")
            self.start()

    def set_clock(self, offset: float) -> None:
        """Put the clock wrong, or right again; records are judged anew as the daemon would."""
        self.clock_offset = offset
        self.watch()

    def watch(self) -> None:
        """What the member does each second, whatever comes in."""
        self.run(lambda: self.member.watch_at_once())
        self._speak_soon()

    def _keep_watching(self) -> None:
        self.watch()
        self.world.after(WATCH_SECONDS, self._keep_watching)

    def power_on(self) -> None:
        """The first start."""
        self.start()
        self.world.after(WATCH_SECONDS * self.world.random.random(), self._keep_watching)

    # -- speaking -------------------------------------------------------------------------------------------------

    def _speak_soon(self) -> None:
        if self._is_speaking_soon or not self.is_up:
            return
        self._is_speaking_soon = True
        pause = self.member.pacing.compute_delay(self.read_clock())
        self.world.after(pause + 0.01 * self.world.random.random(), self._speak)

    def _speak(self) -> None:
        self._is_speaking_soon = False
        if self.is_up and self.member.signing.has_heard_quorum:
            self.run(self._say_next)

    def _say_next(self) -> None:
        batch = self.member.say_next()
        if batch is not None:
            self.world.checkers.note_spoken(self, batch)
        if self.member.voter.has_statements or self.member.submissions.has_ready:
            self._speak_soon()

    def push(self, encoded: bytes) -> None:
        """Send a batch of ours to everybody, as gossip would."""
        if self.world.is_telling:
            batch = decode_batch(self.world.stage.federation.id, encoded)
            self.world.tell(f"member {self.number} says {self.world.names.describe_batch(batch)}")
        for peer in self.world.machines.values():
            if peer is not self:
                self.send(peer, partial(peer.receive, (encoded,), self.number))

    def send(self, peer: Machine, deliver: Callable[[], None]) -> None:
        """Send anything to another machine."""
        self.world.network.send(self.number, peer.number, deliver)

    def receive(self, encoded_batches: tuple[bytes, ...], peer: int) -> None:
        """Batches arrive."""
        self.run(lambda: self.member.ingest_at_once(encoded_batches, str(peer)))
        self._speak_soon()

    # -- wallets --------------------------------------------------------------------------------------------------

    def take_record(self, encoded: bytes) -> str:
        """A wallet hands in a record; returns why it was not taken, or nothing."""
        return self._take(lambda: self.member.submit_at_once(encoded))

    def approve(self, amendment: bytes) -> None:
        """The institution's people approve an amendment."""
        self.run(lambda: self.member.approve_at_once(amendment))
        self._speak_soon()

    def take_request(self, encoded: bytes) -> str:
        """A slot's owner asks for an attempt; returns why it was not taken, or nothing."""
        return self._take(lambda: self.member.unlocking.submit_request_at_once(encoded))

    def take_proposal(self, encoded: bytes, record: bytes) -> str:
        """A slot's owner proposes a record; returns why it was not taken, or nothing."""
        return self._take(lambda: self.member.unlocking.submit_proposal_at_once(encoded, record))

    def list_promises(self, slot: Slot, attempt: int) -> dict[bytes, PromiseGiven]:
        """What a slot's owner is told of the promises for an attempt."""
        return self.member.unlocking.get_promises(slot, attempt) if self.is_up else {}

    @property
    def quorum(self) -> int:
        """Of the charter in force here."""
        return self.member.charter.quorum if self.is_up else self.world.stage.charter.quorum

    def _take(self, work: Callable[[], object]) -> str:
        refusals: list[str] = []

        def submit() -> None:
            try:
                work()
            except Rejected as rejection:
                refusals.append(rejection.reason.name)
            except UserError as error:
                refusals.append(str(error))

        self.run(submit)
        self._speak_soon()
        if not self.is_up:
            return "no answer"
        return refusals[0] if refusals else ""

    def has_final(self, record_id: bytes) -> bool:
        """True when this node shows the record as final, to a wallet that asks."""
        return self.is_up and self.member.get_state(record_id) == "applied"

    # -- anti-entropy ---------------------------------------------------------------------------------------------

    def _want(self, peer: int) -> None:
        """Something of this peer could not be placed: pull from it soon."""
        if not self._wanted:
            self.world.after(WAKE_SECONDS, self._pull_wanted)
        self._wanted.add(peer)

    def _pull_wanted(self) -> None:
        wanted, self._wanted = sorted(self._wanted), set()
        for number in wanted if self.is_up else ():
            self._pull_from(self.world.machines[number])

    def _pull_soon(self, seconds: float) -> None:
        if not self._is_pulling_soon:
            self._is_pulling_soon = True
            self.world.after(seconds * (0.5 + self.world.random.random()), self._pull)

    def _pull(self) -> None:
        self._is_pulling_soon = False
        if not self.is_up:
            return
        others = [peer for peer in self.world.machines.values() if peer is not self and peer.is_up]
        unheard = [peer for peer in others if peer.number not in self.known_of_us]
        chosen = self.world.random.sample(others, min(1, len(others)))
        for peer in chosen if self.member.signing.has_heard_quorum else unheard:
            self._pull_from(peer)
        self._pull_soon(PULL_SECONDS if self.member.signing.has_heard_quorum else 4 * FIRST_PULL_SECONDS)

    def _pull_from(self, peer: Machine) -> None:
        digest = compute_frontier_digest(self.member.replica)
        self.send(peer, partial(peer.answer_probe, self, self.starts, digest))

    def answer_probe(self, asker: Machine, start: int, digest: bytes) -> None:
        """Another member asks for our heads; no heads when it has them all."""
        if self.is_up:
            is_equal = digest == compute_frontier_digest(self.member.replica)
            heads = () if is_equal else get_heads(self.member.replica)
            logs = self.member.replica.logs.items()
            known = max(
                (Known(version, len(log)) for (member, version), log in logs if member == asker.number),
                default=NOTHING_KNOWN,
            )
            self.send(asker, partial(asker.handle_heads, self, start, heads, known))

    def handle_heads(
        self,
        peer: Machine,
        start: int,
        heads: tuple[LogHead, ...],
        known: Known,
        asked: tuple[LogLocator, ...] = (),
    ) -> None:
        """A peer's heads arrive: ask for what comes before them and is not here."""
        if not self.is_up or start != self.starts:
            return
        self.member.log_rates.note_heads(peer.number, heads)
        locators = compute_locators(self.member.replica, heads, self.member.list_ignored_logs())
        if locators and locators != asked:
            self.send(peer, partial(peer.answer_pull, self, start, heads, known, locators))
        else:
            self.note_heard(peer, known)

    def answer_pull(
        self, asker: Machine, start: int, heads: tuple[LogHead, ...], known: Known, locators: tuple[LogLocator, ...]
    ) -> None:
        """Send what comes after the locators, a piece of it."""
        if self.is_up:
            missing = compute_missing(self.member.replica, locators)
            read = map(self.member.archive.read_bytes, missing[:PIECE_BATCHES])
            piece = tuple(encoded for encoded in read if encoded is not None)
            self.send(asker, partial(asker.handle_piece, self, start, heads, known, piece, locators))

    def handle_piece(
        self,
        peer: Machine,
        start: int,
        heads: tuple[LogHead, ...],
        known: Known,
        piece: tuple[bytes, ...],
        asked: tuple[LogLocator, ...],
    ) -> None:
        """Take a piece in, and ask for the next one, unless this one brought us no further."""
        if not self.is_up or start != self.starts:
            return
        self.run(lambda: self.member.ingest_at_once(piece, str(peer.number)))
        if not self.is_up:
            return
        self._speak_soon()
        self.handle_heads(peer, start, heads, known, asked)

    def note_heard(self, peer: Machine, known: Known) -> None:
        """The peer told all that it had; it held so many batches of our log."""
        self.known_of_us[peer.number] = max(known, self.known_of_us.get(peer.number, NOTHING_KNOWN))
        self.member.signing.note_heard(peer.number)
        self._speak_soon()
