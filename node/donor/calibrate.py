"""How fast this machine really is: a short measurement, run in the very sandbox in which jobs run.

A weight compares the machine with the reference GPU (weight 1000) by three figures: arithmetic T, memory bandwidth B
and memory M. For a machine without GPU, T is the throughput of a float32 matrix product. What a driver or a data
sheet claims plays no part; where the charter's rate table names the device, its figure is an upper bound.
"""

from __future__ import annotations

import math
import os
from pathlib import Path

import msgspec

from node.donor.executors.executor import Executor, JobCommand, JobNotStarted, Limits, Outcome
from node.donor.runtimes import Runtime
from node.donor.settings import Score, Settings
from node.errors import UserError
from protocol.limits import WEIGHT_MAX

REFERENCE_TFLOPS = 312.0
REFERENCE_BANDWIDTH_GB = 2039.0
REFERENCE_MEMORY_GB = 80.0
REFERENCE_WEIGHT = 1000
"""An A100-SXM4-80GB: what one credit a second is the price of."""

JOB_ID = "selftest"
WALL_SECONDS = 120.0
MEMORY_BYTES = 10**9
RESULT_BYTES_MAX = 1 << 20

_SCRIPT = '''
import json, time
import numpy

def best(work, seconds):
    """The shortest time of one call, of as many as fit: what else the machine did meanwhile counts least."""
    work()
    shortest, end = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < end:
        start = time.perf_counter()
        work()
        shortest = min(shortest, time.perf_counter() - start)
    return shortest

size = 1024
generator = numpy.random.default_rng(7)
left = generator.random((size, size), dtype=numpy.float32)
right = generator.random((size, size), dtype=numpy.float32)
product = numpy.empty_like(left)
seconds = best(lambda: numpy.matmul(left, right, out=product), 2.0)
expected = left[0].astype(numpy.float64) @ right[:, 0].astype(numpy.float64)
assert abs(product[0, 0] - expected) < 1e-3 * expected, "this machine computes wrongly"
source = numpy.ones(16 * 2**20, dtype=numpy.float64)
target = numpy.empty_like(source)
copy_seconds = best(lambda: numpy.copyto(target, source), 1.0)
print(json.dumps({
    "gigaflops": 2 * size**3 / seconds / 1e9,
    "bandwidth_gb_per_second": 2 * source.nbytes / copy_seconds / 1e9,
}))
'''

_CHECK = r"""
set -e
test "$(id -u)" != 0
test -z "$(ls /home 2>/dev/null)"
test ! -e /root/.ssh
! (exec 3<>/dev/tcp/1.1.1.1/53) 2>/dev/null
echo isolated > out/check
"""


class _Figures(msgspec.Struct):
    gigaflops: float
    bandwidth_gb_per_second: float


def compute_weight(tflops: float, bandwidth_gb_per_second: float, memory_gb: float) -> int:
    """The weight of a device: 1000 times the geometric mean of its three ratios to the reference; at least 1."""
    ratio = (
        (tflops / REFERENCE_TFLOPS)
        * (bandwidth_gb_per_second / REFERENCE_BANDWIDTH_GB)
        * (memory_gb / REFERENCE_MEMORY_GB)
    )
    return min(WEIGHT_MAX, max(1, round(REFERENCE_WEIGHT * math.cbrt(ratio))))


async def check_sandbox(executor: Executor, settings: Settings) -> None:
    """Raise `UserError` unless a job here sees no network, no home and no rights."""
    outcome, log = await _run(executor, settings, _CHECK, None)
    if outcome.exit_status != 0 or not (outcome.output_directory / "check").exists():
        raise UserError(f"the sandbox does not hold on this machine: nothing will be run here ({_show(log)})")
    await executor.release(JOB_ID)


async def measure(executor: Executor, settings: Settings, runtime: Runtime, now_seconds: int) -> Score:
    """Measure in the sandbox, within the limits that jobs get. Raises: UserError when it fails."""
    program = f"OMP_NUM_THREADS={settings.cores} python3 - <<'END'\n{_SCRIPT}\nEND\n"
    outcome, log = await _run(executor, settings, program, runtime.directory)
    await executor.release(JOB_ID)
    if outcome.exit_status != 0:
        raise UserError(f"the measurement failed ({outcome.state}): {_show(log)}")
    try:
        figures = msgspec.json.decode(log.strip().splitlines()[-1], type=_Figures)
    except (msgspec.MsgspecError, IndexError) as error:
        raise UserError(f"the measurement gave no figures: {_show(log)}") from error
    memory_gb = settings.memory_bytes / 1e9
    weight = compute_weight(figures.gigaflops / 1000, figures.bandwidth_gb_per_second, memory_gb)
    return Score(weight, figures.gigaflops, figures.bandwidth_gb_per_second, memory_gb, now_seconds)


async def _run(executor: Executor, settings: Settings, program: str, runtime: Path | None) -> tuple[Outcome, bytes]:
    """Run one short program as a job; its outcome and what it wrote. Raises: UserError."""
    limits = Limits(
        cores=min(settings.cores, len(os.sched_getaffinity(0))),
        memory_bytes=min(MEMORY_BYTES, settings.memory_bytes),
        processes=128,
        disk_bytes=min(64 * 10**6, settings.disk_bytes),
        wall_seconds=WALL_SECONDS,
    )
    command = JobCommand(program, RESULT_BYTES_MAX, {}, runtime)
    await executor.release(JOB_ID)
    try:
        outcome = await executor.run(JOB_ID, command, limits)
    except JobNotStarted as error:
        raise UserError(f"no job can be run on this machine: {error}") from error
    return outcome, outcome.log_path.read_bytes()


def _show(log: bytes) -> str:
    return " ".join(log.decode("utf-8", "replace").split())[-300:]
