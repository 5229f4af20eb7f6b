"""What a final record costs one replica, in units of one raw Ed25519 verification.

The other members of a federation produce real batches beforehand; then one member, with its store on disk, takes in
those bytes: decode, verify, store durably, admit, vote, commit, fold. CPU time of the whole process, threads included,
divided by the number of payments, and by the CPU time of one `verify` of `cryptography` in the same run. Both are taken
on one processor: two threads on two processors that share a core would slow each other down and count as more work.

With `is_profiled`, more such runs are watched and tell where the time goes, in the same unit.
"""

from __future__ import annotations

import gc
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import trio
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from node.storage.store import Store
from protocol.records import Record
from scripts.benchmarks.cost_by_part import REPLICA_PARTS, Watch
from scripts.benchmarks.federation_in_memory import Cast, exchange, make_final

PEOPLE = 600
ROUNDS = 4
SAMPLES = 5


def measure_verify(records: list[Record]) -> float:
    """CPU seconds of one raw verification: the library's own call, keys and signatures at hand."""
    checks = [
        (Ed25519PublicKey.from_public_bytes(record.signers[0]), record.signatures[0], record.id) for record in records
    ]
    started = time.process_time()
    for key, signature, message in checks:
        key.verify(signature, message)
    return (time.process_time() - started) / len(checks)


async def _produce(cast: Cast) -> tuple[list[bytes], list[list[bytes]], list[Record]]:
    """Batches of the set-up, batches of each round of payments, and the payments."""
    others = [
        cast.open_member(number, Store.open(":memory:", cast.federation)) for number in list(cast.member_keys)[1:]
    ]
    setup: list[bytes] = []
    for group in cast.make_setup():
        setup += await make_final(others, group)
    rounds, payments = [], []
    for _ in range(ROUNDS):
        batch_of_payments = cast.make_payments()
        payments += batch_of_payments
        for record in batch_of_payments:
            await others[0].submit(record.encoded)
        rounds.append(await exchange(others))
    return setup, rounds, payments


async def _replay(
    cast: Cast, setup: list[bytes], rounds: list[list[bytes]], payments: list[Record], path: Path, watch: Watch | None
) -> tuple[float, float]:
    """(CPU seconds of a payment at the measured member, of one verification)."""
    store = Store.open(path, cast.federation)
    member = cast.open_member(1, store)
    await member.ingest(setup, "benchmark")
    member.say_next()
    gc.collect()
    verify_before = measure_verify(payments)
    started = time.process_time()
    with watch.watching(REPLICA_PARTS) if watch else nullcontext():
        for batches in rounds:
            for encoded in batches:
                await member.ingest([encoded], "benchmark")
                member.say_next()
    spent = (time.process_time() - started) / len(payments)
    assert all(member.replica.is_final(record.id) for record in payments)
    store.close()
    return spent, (verify_before + measure_verify(payments)) / 2


def measure(
    member_counts: tuple[int, ...] = (4,), samples: int = SAMPLES, *, is_profiled: bool = False
) -> dict[str, object]:
    """`replica_cpu_in_verifies` by number of members: median of several runs, with all runs; and where it goes."""
    processors = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(processors)})
    try:
        return _measure_here(member_counts, samples, is_profiled)
    finally:
        os.sched_setaffinity(0, processors)


def _measure_here(member_counts: tuple[int, ...], samples: int, is_profiled: bool) -> dict[str, object]:
    result: dict[str, object] = {}
    details: dict[str, object] = {}
    profiles: dict[str, object] = {}
    for count in member_counts:
        cast = Cast(count, PEOPLE)
        setup, rounds, payments = trio.run(_produce, cast)

        def replay(watch: Watch | None = None) -> tuple[float, float]:
            with tempfile.TemporaryDirectory() as directory:
                path = Path(directory) / "ledger.sqlite"
                return trio.run(_replay, cast, setup, rounds, payments, path, watch)  # noqa: B023  # used at once

        runs = [replay() for _ in range(samples)]
        ratios = [spent / verify for spent, verify in runs]
        result[str(count)] = round(statistics.median(ratios), 3)
        details[str(count)] = {
            "runs": [round(ratio, 3) for ratio in ratios],
            "verify_us": round(statistics.median(verify for _, verify in runs) * 1e6, 1),
            "records": len(payments),
            "batches": sum(map(len, rounds)),
        }
        if is_profiled:
            profiles[str(count)] = _profile(replay, samples, len(payments))
    profile = {"replica_profile_in_verifies": profiles} if is_profiled else {}
    return {"replica_cpu_in_verifies": result, "replica": details, **profile}


def _profile(replay: Callable[[Watch], tuple[float, float]], samples: int, payments: int) -> dict[str, float]:
    """Verifications that each part costs a payment, the costliest first: medians of several runs."""
    shares: dict[str, list[float]] = {}
    for _ in range(samples):
        watch = Watch()
        _, verify = replay(watch)
        for part, seconds in watch.read().items():
            shares.setdefault(part, []).append(seconds / payments / verify)
    medians = {part: round(statistics.median(values), 4) for part, values in shares.items()}
    return dict(sorted(medians.items(), key=lambda entry: -entry[1]))


if __name__ == "__main__":
    print(measure())
