"""How fast this machine really is: a short measurement, run in the very sandbox in which jobs run.

A weight compares a device with the reference GPU (weight 1000) by three figures: arithmetic T, memory bandwidth B and
memory M. What a driver or a data sheet claims is a hint; what was measured is the evidence: the effective weight is
the lower of the charter's rate for the device's name, where it has one, and of the measurement. A machine with GPUs
is measured on all those that it lends at once and weighs what the weakest of them does, as any job may get that one;
for a machine without, T is the throughput of a float32 matrix product on its cores (spec 12.11).
"""

from __future__ import annotations

import math
import os
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from node.donor.executors.devices import DevicePool
from node.donor.executors.executor import Executor, JobCommand, JobNotStarted, Limits, Outcome
from node.donor.gpus import Gpu
from node.donor.runtimes import Runtime
from node.donor.settings import DonorHome, GpuScore, Score, Settings
from node.errors import UserError
from protocol.charter import Rate
from protocol.limits import WEIGHT_MAX

REFERENCE_TFLOPS = 312.0
REFERENCE_BANDWIDTH_GB = 2039.0
REFERENCE_MEMORY_GB = 80.0
REFERENCE_WEIGHT = 1000
"""An A100-SXM4-80GB: what one credit a second is the price of."""

JOB_ID = "selftest"
MEASUREMENT = Path(__file__).with_name("measurement.py")
"""The measuring program. Only its text is used here: its packages are in runtimes."""
RUNTIME_FOR_CORES = "python-ml"
RUNTIME_FOR_GPUS = "python-gpu"
WALL_SECONDS = 300.0
MEMORY_BYTES = 10**9
MEMORY_BYTES_PER_GPU = 10**9
"""Beside it: each card's driver keeps books in the machine's memory, and a copy of each product lies there."""
RESULT_BYTES_MAX = 1 << 20
FILLED_SHARE_MIN = 0.9
"""Of the memory that a card says is free, what must hold words: the driver and the libraries need a part."""
SLOW_SHARE = 0.7
"""Below this share of the best of its like a card is named: something is wrong with it or its place."""
REPEAT_SECONDS_MIN = 3600
REPEAT_SECONDS_MAX = 7 * 86400
"""After so long a self-test is due; before, the chance grows with the time, so that nobody can plan for it."""


@dataclass(frozen=True)
class Workload:
    """How much the measurement does on each device."""

    arrays: str
    """The package that computes: numpy or cupy."""
    number_format: str
    size: int
    """Rows and columns of the matrices."""
    block_bytes: int
    copy_bytes: int
    product_seconds: float = 2.0
    copy_seconds: float = 1.0


CORES_WORKLOAD = Workload("numpy", "float32", 1024, 8 * 2**20, 128 * 2**20)
GPU_WORKLOAD = Workload("cupy", "float16", 8192, 64 * 2**20, 512 * 2**20)
CORES_CLAIM_BYTES = 64 * 2**20
"""What is filled of a processor's memory: that a machine has the memory that it lends, the kernel vouches for."""

_CHECK = r"""
set -e
test "$(id -u)" != 0
test -z "$(ls /home 2>/dev/null)"
test ! -e /root/.ssh
! (exec 3<>/dev/tcp/1.1.1.1/53) 2>/dev/null
echo isolated > out/check
"""


class _Figures(msgspec.Struct):
    """What the measurement says of one device."""

    name: str
    fault: str
    verified_bytes: int
    gigaflops: float
    bandwidth_gb_per_second: float


def compute_weight(tflops: float, bandwidth_gb_per_second: float, memory_gb: float) -> int:
    """The weight of a device, in thousandths of the reference; at least 1."""
    return min(WEIGHT_MAX, max(1, round(REFERENCE_WEIGHT * _compute_ratio(tflops, bandwidth_gb_per_second, memory_gb))))


def _compute_ratio(tflops: float, bandwidth_gb_per_second: float, memory_gb: float) -> float:
    """The geometric mean of a device's three ratios to the reference."""
    return math.cbrt(
        (tflops / REFERENCE_TFLOPS)
        * (bandwidth_gb_per_second / REFERENCE_BANDWIDTH_GB)
        * (memory_gb / REFERENCE_MEMORY_GB)
    )


async def check_sandbox(executor: Executor, settings: Settings) -> None:
    """Raise `UserError` unless a job here sees no network, no home and no rights."""
    outcome, log = await _run(executor, settings, _CHECK)
    if outcome.exit_status != 0 or not (outcome.output_directory / "check").exists():
        raise UserError(f"the sandbox does not hold on this machine: nothing will be run here ({_show(log)})")
    await executor.release(JOB_ID)


async def measure(
    executor: Executor,
    settings: Settings,
    runtimes: Mapping[str, Runtime],
    rates: Sequence[Rate],
    gpus: Sequence[Gpu],
    now_seconds: int,
    workload: Workload | None = None,
) -> Score:
    """Measure in the sandbox, within the limits that jobs get: the GPUs, all of them lent, or else the cores.

    Raises: UserError when it fails, or when none of the GPUs does what it claims.
    """
    if gpus:
        found = await _measure_gpus(executor, settings, runtimes, rates, gpus, workload or GPU_WORKLOAD)
        sound = [gpu for gpu in found if not gpu.fault]
        if not sound:
            raise UserError("no GPU can be lent: " + "; ".join(f"{gpu.name} {gpu.uuid}: {gpu.fault}" for gpu in found))
        weakest = min(sound, key=lambda gpu: (gpu.weight, _compute_speed(gpu)))
        gigaflops, bandwidth = weakest.gigaflops, weakest.bandwidth_gb_per_second
        return Score(weakest.weight, gigaflops, bandwidth, weakest.memory_gb, now_seconds, tuple(found))
    claims = {"processor": CORES_CLAIM_BYTES}
    runtime = _get_runtime(runtimes, RUNTIME_FOR_CORES)
    (figures,) = await _run_measurement(executor, settings, runtime, workload or CORES_WORKLOAD, claims)
    if figures.fault:
        raise UserError(f"the processor fails the self-test: {figures.fault}")
    memory_gb = settings.memory_bytes / 1e9
    weight = compute_weight(figures.gigaflops / 1000, figures.bandwidth_gb_per_second, memory_gb)
    return Score(weight, figures.gigaflops, figures.bandwidth_gb_per_second, memory_gb, now_seconds)


def compute_effective_weight(name: str, measured: int, rates: Sequence[Rate]) -> int:
    """What a device counts as: never more than was measured, nor than the charter's table grants its name."""
    return min([measured, *(rate.weight for rate in rates if rate.device == name)])


def find_slow_gpus(score: Score) -> list[GpuScore]:
    """Sound cards that do far less than the best of the same name; the machine weighs what the slowest does."""
    best: dict[str, float] = {}
    for gpu in score.sound_gpus:
        best[gpu.name] = max(best.get(gpu.name, 0.0), _compute_speed(gpu))
    return [gpu for gpu in score.sound_gpus if _compute_speed(gpu) < SLOW_SHARE * best[gpu.name]]


def _compute_speed(gpu: GpuScore) -> float:
    """What was measured, before rounding and before the charter's table."""
    return _compute_ratio(gpu.gigaflops / 1000, gpu.bandwidth_gb_per_second, gpu.memory_gb)


def should_repeat(now_seconds: int, measured_at_seconds: int, chance: float) -> bool:
    """Whether the machine, free at this moment, is measured again. `chance` is a random number from [0, 1)."""
    passed = now_seconds - measured_at_seconds
    return passed >= REPEAT_SECONDS_MIN and chance < passed / REPEAT_SECONDS_MAX


async def repeat_selftest(
    home: DonorHome,
    settings: Settings,
    executor: Executor,
    devices: DevicePool,
    runtimes: Mapping[str, Runtime],
    rates: Sequence[Rate],
    now_seconds: int,
    workload: Workload | None = None,
) -> Score:
    """Measure again, to be called while no job runs and none can start. What is found holds from now on: it is kept
    for the next start, and cards that failed are lent no more. The caller offers the machine with this weight.

    Raises: UserError when the machine failed altogether: then it must offer nothing.
    """
    lent = devices.list_lent()
    if devices.lent and not lent:
        raise UserError("none of the GPUs that are lent answers")
    try:
        score = await measure(executor, settings, runtimes, rates, lent, now_seconds, workload)
    except UserError:
        devices.lend(())
        raise
    home.save_score(score)
    devices.lend([gpu.uuid for gpu in score.sound_gpus])
    return score


async def _measure_gpus(
    executor: Executor,
    settings: Settings,
    runtimes: Mapping[str, Runtime],
    rates: Sequence[Rate],
    gpus: Sequence[Gpu],
    workload: Workload,
) -> list[GpuScore]:
    """Each card's score, in the order of `gpus`."""
    claims = {gpu.uuid: gpu.memory_bytes - gpu.memory_used_bytes for gpu in gpus}
    runtime = _get_runtime(runtimes, RUNTIME_FOR_GPUS)
    figures = {one.name: one for one in await _run_measurement(executor, settings, runtime, workload, claims)}
    if set(figures) != set(claims):
        raise UserError("the self-test was given other GPUs than are lent: start it again when no job runs")
    return [_judge(gpu, claims[gpu.uuid], figures[gpu.uuid], rates) for gpu in gpus]


def _judge(gpu: Gpu, claimed_bytes: int, figures: _Figures, rates: Sequence[Rate]) -> GpuScore:
    fault = figures.fault
    if not fault and figures.verified_bytes < FILLED_SHARE_MIN * claimed_bytes:
        fault = f"it claims {claimed_bytes / 1e9:.1f} GB of free memory and holds {figures.verified_bytes / 1e9:.1f} GB"
    memory_gb = figures.verified_bytes / 1e9
    weight = compute_weight(figures.gigaflops / 1000, figures.bandwidth_gb_per_second, memory_gb)
    return GpuScore(
        gpu.uuid,
        gpu.name,
        gpu.memory_bytes,
        compute_effective_weight(gpu.name, weight, rates),
        figures.gigaflops,
        figures.bandwidth_gb_per_second,
        memory_gb,
        fault,
    )


def _get_runtime(runtimes: Mapping[str, Runtime], name: str) -> Path:
    if name not in runtimes:
        raise UserError(f"measuring needs the runtime {name}: add it to runtimes in donor.toml")
    return runtimes[name].directory


async def _run_measurement(
    executor: Executor, settings: Settings, runtime: Path, workload: Workload, claims: Mapping[str, int]
) -> list[_Figures]:
    """Run the measuring program. Raises: UserError."""
    text = MEASUREMENT.read_text()
    task = {**vars(workload), "claims": claims, "seed": secrets.randbits(32)}
    environment = {"SELFTEST": msgspec.json.encode(task).decode(), "OMP_NUM_THREADS": str(settings.cores)}
    gpus = len(claims) if workload.arrays != "numpy" else 0
    program = f"python3 - <<'END'\n{text}\nEND\n"
    outcome, log = await _run(executor, settings, program, runtime, environment, gpus)
    await executor.release(JOB_ID)
    if outcome.exit_status != 0:
        raise UserError(f"the measurement failed ({outcome.state}): {_show(log)}")
    try:
        return msgspec.json.decode(log.strip().splitlines()[-1], type=list[_Figures])
    except (msgspec.MsgspecError, IndexError) as error:
        raise UserError(f"the measurement gave no figures: {_show(log)}") from error


async def _run(
    executor: Executor,
    settings: Settings,
    program: str,
    runtime: Path | None = None,
    environment: Mapping[str, str] | None = None,
    gpus: int = 0,
) -> tuple[Outcome, bytes]:
    """Run one short program as a job; its outcome and what it wrote. Raises: UserError."""
    limits = Limits(
        cores=min(settings.cores, len(os.sched_getaffinity(0))),
        memory_bytes=min(MEMORY_BYTES + gpus * MEMORY_BYTES_PER_GPU, settings.memory_bytes),
        processes=settings.processes_max,
        disk_bytes=min(64 * 10**6, settings.disk_bytes),
        wall_seconds=WALL_SECONDS,
        gpus=gpus,
    )
    command = JobCommand(program, RESULT_BYTES_MAX, environment or {}, runtime)
    await executor.release(JOB_ID)
    try:
        outcome = await executor.run(JOB_ID, command, limits)
    except JobNotStarted as error:
        raise UserError(f"no job can be run on this machine: {error}") from error
    return outcome, outcome.log_path.read_bytes()


def _show(log: bytes) -> str:
    return " ".join(log.decode("utf-8", "replace").split())[-300:]
