"""What the node's store costs above SQLite itself: the same batches through both, in turns, in one process."""

from __future__ import annotations

import os
import shutil
import sqlite3
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from statistics import median
from time import perf_counter, process_time
from typing import NamedTuple

from node.storage.limits import WAL_PAGES_MAX
from node.storage.migrations import STEPS
from node.storage.store import Store

FEDERATION = bytes(32)
APPEND = "INSERT INTO batch (id, encoded) VALUES (?, ?) ON CONFLICT (id) DO NOTHING"

Group = Sequence[tuple[bytes, bytes]]


class Case(NamedTuple):
    """`groups` transactions of `group` batches of `batch_bytes`."""

    group: int
    batch_bytes: int
    groups: int


CASES = (
    Case(1, 20_000, 300),
    Case(10, 20_000, 60),
    Case(100, 20_000, 8),
    Case(1, 500, 600),
    Case(100, 500, 60),
    Case(1000, 500, 10),
)


def open_raw(path: Path) -> sqlite3.Connection:
    """The same schema and settings without peewee and without our code."""
    connection = sqlite3.connect(path, isolation_level=None)
    for setting in (
        "locking_mode = EXCLUSIVE",
        "journal_mode = WAL",
        "synchronous = FULL",
        f"wal_autocheckpoint = {WAL_PAGES_MAX}",
        f"journal_size_limit = {4 * 4096 * WAL_PAGES_MAX}",
    ):
        connection.execute(f"PRAGMA {setting}").fetchall()
    for statement in STEPS[0]:
        connection.execute(statement)
    return connection


def append_raw(connection: sqlite3.Connection, group: Group) -> None:
    """One durable transaction."""
    connection.execute("BEGIN")
    connection.executemany(APPEND, group)
    connection.execute("COMMIT")


def time_groups(append: Callable[[Group], None], groups: Sequence[Group]) -> tuple[float, float]:
    """(CPU, wall) seconds. CPU counts: the wall clock waits for a disk that others use, too."""
    cpu, wall = process_time(), perf_counter()
    for group in groups:
        append(group)
    return process_time() - cpu, perf_counter() - wall


def measure_once(case: Case, directory: Path, is_raw_first: bool) -> dict[str, tuple[float, float]]:
    """Both ways on fresh files, one after the other."""
    groups = [[(os.urandom(32), os.urandom(case.batch_bytes)) for _ in range(case.group)] for _ in range(case.groups)]
    seconds: dict[str, tuple[float, float]] = {}
    for way in ("raw", "store") if is_raw_first else ("store", "raw"):
        path = directory / f"{way}.sqlite"
        if way == "raw":
            connection = open_raw(path)
            seconds[way] = time_groups(partial(append_raw, connection), groups)
            connection.close()
        else:
            store = Store.open(path, FEDERATION)
            seconds[way] = time_groups(store.append_batches, groups)
            assert store.count_batches() == case.group * case.groups
            store.close()
        path.unlink()
    return seconds


def measure(runs: int = 7) -> dict[str, float | dict[str, float]]:
    """`share_of_raw`: the store's rate as a share of raw SQLite's, in CPU time, in the case where it is least.

    Every case is measured `runs` times, the two ways in turns; the median of the ratios counts.
    """
    directory = Path(tempfile.mkdtemp(prefix="bench-store-"))
    shares: dict[str, float] = {}
    shares_wall: dict[str, float] = {}
    batches_per_second: dict[str, float] = {}
    try:
        for case in CASES:
            rounds = [measure_once(case, directory, bool(number % 2)) for number in range(runs)]
            title = f"{case.group} x {case.batch_bytes} B"
            shares[title] = round(median(each["raw"][0] / each["store"][0] for each in rounds), 3)
            shares_wall[title] = round(median(each["raw"][1] / each["store"][1] for each in rounds), 3)
            batches = case.group * case.groups
            batches_per_second[title] = round(median(batches / each["store"][1] for each in rounds))
    finally:
        shutil.rmtree(directory)
    return {
        "share_of_raw": min(shares.values()),
        "shares_cpu": shares,
        "shares_wall": shares_wall,
        "batches_per_second": batches_per_second,
    }


if __name__ == "__main__":
    import json

    print(json.dumps(measure(), indent=2))
