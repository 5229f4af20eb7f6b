"""The commands of a donor about the machine itself: look it over, and measure it."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from node.errors import UserError
from node.terminal import emit, home_option, json_option

if TYPE_CHECKING:
    from node.donor.doctor import Check
    from node.donor.settings import DonorHome, Score

EXIT_FAILED = 1


@click.command()
@home_option
@click.option("--quick", is_flag=True, help="Check the sandbox only; keep the last measurement.")
@json_option
def selftest(home: Path, quick: bool, as_json: bool) -> None:
    """Check the sandbox, build the runtimes, and measure how fast this machine is. Takes a minute or two at first.

    Example: allmende donor selftest
    """
    import msgspec
    import trio

    from node.donor.settings import open_donor

    donor_home = open_donor(home)
    score, built = trio.run(_test, donor_home, quick)
    if score is None:
        raise UserError("this machine was never measured: run `allmende donor selftest` without --quick")
    donor_home.save_score(score)
    document = {
        "weight": score.weight,
        "gigaflops": round(score.gigaflops, 1),
        "bandwidth_gb_per_second": round(score.bandwidth_gb_per_second, 2),
        "memory_gb": round(score.memory_gb, 2),
        "gpus": msgspec.to_builtins(score.gpus),
        "runtimes": {name: runtime.digest.hex() for name, runtime in built.items()},
    }
    emit(document, [*_describe_score(score), *_describe_runtimes(built)], as_json)


async def _test(donor_home: DonorHome, quick: bool) -> tuple[Score | None, dict[str, Any]]:
    """The score, and the runtimes that were built or found."""
    import trio

    from node.donor.calibrate import check_sandbox, measure
    from node.donor.executors.choosing import make_executor
    from node.donor.executors.devices import DevicePool
    from node.donor.gpus import GpuDriver
    from node.donor.runtimes import KNOWN_RUNTIMES, build_runtime
    from node.known_charters import KnownCharters

    settings = donor_home.load_settings()
    if unknown := sorted(set(settings.runtimes) - set(KNOWN_RUNTIMES)):
        raise UserError(
            f"donor.toml names unknown runtimes ({', '.join(unknown)}): known are {', '.join(KNOWN_RUNTIMES)}"
        )
    pool = DevicePool(GpuDriver.open() if settings.gpus else None, settings.gpus)
    lent = pool.list_lent()
    if missing := sorted(set(settings.gpus) - {gpu.uuid for gpu in lent}):
        raise UserError(f"GPUs that donor.toml lends do not answer ({', '.join(missing)}): see `allmende donor doctor`")
    executor = make_executor(settings.executor, donor_home.sandbox, settings.slurm, pool)
    try:
        await executor.sweep()
        await check_sandbox(executor, settings)
        _tell("the sandbox holds: no network, no files of yours, no rights")
        if quick:
            return donor_home.load_score(), {}
        built = {}
        for name in settings.runtimes:
            _tell(f"building the runtime {name}")
            built[name] = await trio.to_thread.run_sync(
                build_runtime, name, KNOWN_RUNTIMES[name], donor_home.runtimes, _tell
            )
        _tell("measuring")
        charter = KnownCharters(donor_home.load_charter().charter, donor_home.amendments_path).newest
        return await measure(executor, settings, built, charter.fields.rates, lent, int(time.time())), built
    finally:
        executor.close()


def _describe_score(score: Score) -> list[str]:
    from node.donor.calibrate import find_slow_gpus

    slow = {gpu.uuid for gpu in find_slow_gpus(score)}
    lines = [
        f"GPU {gpu.name} {gpu.uuid}: "
        + (f"not lent, {gpu.fault}" if gpu.fault else f"weight {gpu.weight}")
        + (", far slower than its like: without it, the machine's weight rises" if gpu.uuid in slow else "")
        for gpu in score.gpus
    ]
    of_what = "The weakest: matrix" if len(score.sound_gpus) > 1 else "Matrix"
    return [
        *lines,
        f"{of_what} product {score.gigaflops:.1f} GFLOPS, memory {score.bandwidth_gb_per_second:.1f} GB/s, "
        f"{score.memory_gb:.1f} GB lent",
        f"Weight {score.weight} (the reference GPU has 1000)",
    ]


def _describe_runtimes(built: dict[str, Any]) -> list[str]:
    return [f"Runtime {name}: {runtime.digest.hex()[:16]}" for name, runtime in built.items()]


@click.command()
@home_option
@json_option
@click.pass_context
def doctor(context: click.Context, home: Path, as_json: bool) -> None:
    """Look this machine over: what it has, how its GPUs are, what is lent. Exit status 1 when something fails.

    Example: allmende donor doctor
    """
    import msgspec

    from node.donor.doctor import examine
    from node.donor.settings import DIRECTORY_NAME, DonorHome

    checks = list(examine(DonorHome(home / DIRECTORY_NAME)))
    failed = sum(check.state == "failed" for check in checks)
    lines = [line for check in checks for line in _describe_check(check)]
    lines.append(f"{len(checks)} checks, {failed} failed." if failed else f"{len(checks)} checks, none failed.")
    emit({"failed": failed, "checks": msgspec.to_builtins(checks)}, lines, as_json)
    if failed:
        context.exit(EXIT_FAILED)


def _describe_check(check: Check) -> list[str]:
    lines = [f"{check.state:8}{check.name}: {check.actual}"]
    return [*lines, f"{'':8}remedy: {check.remedy}"] if check.remedy else lines


def _tell(text: str) -> None:
    click.echo(text, err=True)
