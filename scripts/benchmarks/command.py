"""How long a person waits for the command itself: `allmende wallet balance` against a bare `python -c pass`.

A real wallet asks a real node; both commands run in turn, so that a noisy machine hits both.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from scripts.benchmarks.federation_in_memory import Cast
from scripts.benchmarks.local_federation import LocalFederation

RUNS = 15
COMMAND = str(Path(sys.executable).parent / "allmende")


def _time(command: Sequence[str]) -> float:
    started = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True, stdin=subprocess.DEVNULL)
    return (time.perf_counter() - started) * 1000


def measure() -> dict[str, object]:
    """Medians in milliseconds, and their difference."""
    with tempfile.TemporaryDirectory() as folder, LocalFederation(Path(folder), Cast(4, 2)) as federation:
        home = str(Path(folder) / "wallet")
        init = [COMMAND, "wallet", "init", "--home", home, "--node", federation.urls[1], "--no-passphrase"]
        subprocess.run(init, check=True, capture_output=True, stdin=subprocess.DEVNULL)
        balance = [COMMAND, "wallet", "balance", "--home", home]
        bare = [sys.executable, "-c", "pass"]
        pairs = [(_time(balance), _time(bare)) for _ in range(RUNS)]
    balances, bares = zip(*pairs, strict=True)
    return {
        "wallet_balance_ms": round(statistics.median(balances), 1),
        "python_pass_ms": round(statistics.median(bares), 1),
        "difference_ms": round(statistics.median(b - p for b, p in pairs), 1),
        "wallet_balance_best_ms": round(min(balances), 1),
    }
