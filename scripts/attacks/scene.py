"""Where attacks happen: one real node as the victim, an honest member that keeps asking it, and a supply of attackers.

Each attacker is a member of its own, so that what one did to its standing is not the next one's trouble.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import NamedTuple

import trio

from node.config import NodeHome
from node.network.peer_ids import compute_peer_id
from node.storage.store import Store
from protocol.batches import Batch, LogPosition, build_batch
from protocol.records import Kind, Output, Record, RecordDraft, Transfer, account_scope, sign_record
from scripts.attacks.attacker import Attacker
from scripts.benchmarks.federation_in_memory import Cast
from scripts.benchmarks.local_federation import LocalFederation, wait_until

MEMBERS = 40
VICTIM, HONEST, FIRST_ATTACKER = 1, 2, 3
HISTORY_BATCHES = 40
"""About ten MB that can be pulled."""

LOG_BYTES_PER_SECOND = 256 * 1024
OUTPUTS_PER_RECORD = 240
RECORDS_PER_BATCH = 12


class Service(NamedTuple):
    """How the honest member was served for a while."""

    answers: int
    failures: int
    median_ms: float
    worst_ms: float


class Scene:
    """The victim, its honest peer, and what attackers need."""

    def __init__(self, federation: LocalFederation, address: str) -> None:
        self.cast = federation.cast
        self.address = address
        self.http_port = int(federation.urls[VICTIM].rpartition(":")[2])
        self.p2p_port = int(address.split("/")[4])
        self._process = federation.processes[VICTIM]
        self._attackers = iter(range(FIRST_ATTACKER, MEMBERS + 1))
        self._probes: list[tuple[float, float | None]] = []

    @property
    def is_alive(self) -> bool:
        """True while the victim runs."""
        return self._process.poll() is None

    @asynccontextmanager
    async def attacker(self) -> AsyncIterator[tuple[Attacker, int]]:
        """A new attacker, connected, and its number."""
        number = next(self._attackers)
        async with Attacker(self.cast.peer_keys[number].private_bytes_raw(), self.address).run() as attacker:
            yield attacker, number

    def read_memory(self, field: str) -> int:
        """Bytes of the victim's memory: `VmRSS` now, `VmHWM` at the peak."""
        for line in Path(f"/proc/{self._process.pid}/status").read_text().splitlines():
            if line.startswith(f"{field}:"):
                return int(line.split()[1]) * 1024
        return 0

    def forget_peak(self) -> None:
        """Let the peak of memory start anew."""
        Path(f"/proc/{self._process.pid}/clear_refs").write_text("5")

    async def follow(self, prober: trio.Process) -> None:
        """Take down what the honest member says."""
        assert prober.stdout is not None
        rest = b""
        async for chunk in prober.stdout:
            *lines, rest = (rest + chunk).split(b"\n")
            for line in lines:
                moment, latency = line.decode().split()
                self._probes.append((float(moment), None if latency == "-" else float(latency)))

    def describe_service(self, start: float, end: float) -> Service:
        """How the honest member was served between two moments of the steady clock."""
        probes = [latency for moment, latency in self._probes if start <= moment < end]
        answered = [latency for latency in probes if latency is not None]
        return Service(
            len(answered),
            len(probes) - len(answered),
            round(statistics.median(answered), 1) if answered else float("inf"),
            max(answered, default=float("inf")),
        )

    async def wait_served(self, seconds: float) -> float | None:
        """Seconds until the honest member gets an answer to a question that it asks from now on; None: it doesn't."""
        started = time.monotonic()
        with trio.move_on_after(seconds):
            while not any(moment >= started and latency for moment, latency in self._probes[-50:]):
                await trio.sleep(0.02)
            return time.monotonic() - started
        return None


def make_bulky_record(cast: Cast, sequence: int) -> Record:
    """A well-formed payment of an account that has nothing, of nearly the largest size."""
    key = cast.people[0]
    signer = key.public_key().public_bytes_raw()
    outputs = tuple(Output(bytes([number]) * 32, bytes(32), 2, 1) for number in range(OUTPUTS_PER_RECORD))
    scope, prev = account_scope(cast.accounts[0]), bytes(32) if sequence else b""
    return sign_record(
        cast.federation,
        RecordDraft(Kind.TRANSFER, 1, scope, sequence, prev, Transfer(outputs, ""), (signer,)),
        [key],
    )


def make_log(cast: Cast, member: int, count: int, position: LogPosition, salt: int = 0) -> Iterator[Batch]:
    """Batches of 240 kB, signed and linked as they must be, with nothing in them that anybody could vote for."""
    for number in range(count):
        first = ((salt + number) * RECORDS_PER_BATCH) % 1_000_000
        records = [make_bulky_record(cast, 1 + first + place) for place in range(RECORDS_PER_BATCH)]
        batch = build_batch(
            cast.founded.charter,
            cast.vote_keys[member],
            member,
            position,
            seen=(),
            time_ms=0,
            records=records,
            statements=(),
        )
        yield batch
        position = LogPosition(position.index + 1, batch.id)


@contextmanager
def _run_victim(cast: Cast) -> Iterator[tuple[LocalFederation, str]]:
    with tempfile.TemporaryDirectory() as folder:
        federation = LocalFederation(Path(folder), cast)
        home = NodeHome(federation.homes[VICTIM])
        store = Store.open(home.ledger, cast.federation)
        batches = make_log(cast, HONEST, HISTORY_BATCHES, LogPosition(0, b""))
        store.append_batches([(batch.id, batch.encoded) for batch in batches])
        store.close()
        peer_id = compute_peer_id(cast.peer_keys[VICTIM].public_key().public_bytes_raw())
        try:
            federation.start(VICTIM)
            wait_until(lambda: federation.read_status(VICTIM) is not None, "the victim answers")
            yield federation, f"{home.load_config().p2p}/p2p/{peer_id}"
        finally:
            federation.stop()


@asynccontextmanager
async def open_scene() -> AsyncIterator[Scene]:
    """Victim and honest member as processes of their own; both end with the block."""
    cast = Cast(MEMBERS, 1, LOG_BYTES_PER_SECOND)
    with _run_victim(cast) as (federation, address):
        scene = Scene(federation, address)
        seed = cast.peer_keys[HONEST].private_bytes_raw().hex()
        command: Sequence[str] = [sys.executable, "-m", "scripts.attacks.probing", seed, address]
        prober = await trio.lowlevel.open_process(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            cwd=Path(__file__).resolve().parents[2],
            start_new_session=True,
        )
        async with trio.open_nursery() as nursery:
            nursery.start_soon(scene.follow, prober)
            try:
                if await scene.wait_served(30) is None:
                    raise TimeoutError("the victim does not answer an honest member even in peace")
                yield scene
            finally:
                prober.kill()
                nursery.cancel_scope.cancel()
