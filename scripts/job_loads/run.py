"""A load of jobs from its begin to its books: customers submit, chaos kills, and at the end everything is compared."""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

from node.addresses import Kind, decode_address
from node.config import NodeHome
from node.operator.cli_ledger import verify_ledger
from scripts.demonstration.run import INSTITUTIONS, have_equal_states
from scripts.demonstration.stage import DemoFailed, Stage
from scripts.job_loads.books import sum_up
from scripts.job_loads.chaos import Chaos
from scripts.job_loads.leftovers import find_leftovers
from scripts.job_loads.scene import Scene
from tests.node.donor.slurm_cluster import find_obstacle, running_cluster

ROOT = Path(__file__).resolve().parents[2]
AUDITOR = INSTITUTIONS[-1]
"""Whose replica is verified anew at the end."""
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
SECONDS_A_JOB_MAX = 60
POLL_SECONDS = 1.0


def main() -> int:
    """Run it; returns the exit status."""
    arguments = _parse()
    obstacle = "" if arguments.without_slurm else find_obstacle()
    if obstacle:
        print(f"{obstacle}, or choose --without-slurm", file=sys.stderr)
        return 2
    for number in SIGNALS:
        signal.signal(number, _stop)
    with Stage(arguments.folder, keep=arguments.keep) as stage:
        try:
            result = run(stage, arguments)
        except DemoFailed as failure:
            stage.keep = True
            result = {"problems": [f"{failure}; all homes and logs are in {stage.folder}"]}
    if arguments.json:
        print(json.dumps(result, indent=2))
    else:
        _print(result)
    return 1 if result["problems"] else 0


def _stop(number: int, _frame: object) -> None:
    """Leave through every `finally`, so that nothing stays behind; a second signal must not cut that short."""
    for other in SIGNALS:
        signal.signal(other, signal.SIG_IGN)
    raise SystemExit(128 + number)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="scripts/job_load", description=__doc__)
    parser.add_argument("--jobs", type=int, default=1000, help="how many in all; default 1000")
    parser.add_argument("--wallets", type=int, default=10, help="who submit them, side by side; default 10")
    parser.add_argument("--kill-seconds", type=float, default=15, help="between two kills; 0 for none; default 15")
    parser.add_argument("--without-slurm", action="store_true", help="two sandboxes only")
    parser.add_argument("--seed", type=int, default=1, help="of the jobs and the kills")
    parser.add_argument("--json", action="store_true", help="print one JSON document instead of a table")
    parser.add_argument("--keep", action="store_true", help="keep all homes and logs")
    parser.add_argument("--folder", type=Path, default=ROOT / ".load", help="where all of it lies; default .load")
    return parser.parse_args()


def run(stage: Stage, arguments: argparse.Namespace) -> dict[str, Any]:
    """Figures, and under `problems` what does not hold. Raises: DemoFailed."""
    with ExitStack() as stack:
        cluster = None if arguments.without_slurm else stack.enter_context(running_cluster())
        scene = Scene(stage, cluster)
        scene.build(arguments.wallets)
        before = {name: scene.read_balance(name) for name in scene.wallets}
        stage.title(f"{arguments.jobs} jobs")
        chaos = Chaos(scene.list_victims(), arguments.kill_seconds, Random(arguments.seed))
        started = time.monotonic()
        with customers(scene, arguments) as outs:
            with chaos:
                ended = wait_for_customers(stage, outs, arguments.jobs)
            result, problems = close_books(scene, before, outs)
        problems += ended
        result |= {"seconds": round(time.monotonic() - started, 1), "kills": dict(chaos.kills)}
        stage.stop_all()
        if cluster is not None:
            result["audit"], differences = audit(scene)
            problems += differences
    problems += find_leftovers(stage.folder, scene.list_sandboxes())
    return {**result, "problems": problems}


@contextmanager
def customers(scene: Scene, arguments: argparse.Namespace) -> Iterator[dict[Path, subprocess.Popen[bytes]]]:
    """A process for each wallet, by the file in which it notes its jobs."""
    stage, count = scene.stage, len(scene.wallets)
    processes: dict[Path, subprocess.Popen[bytes]] = {}
    try:
        for number, name in enumerate(scene.wallets):
            jobs = arguments.jobs // count + (number < arguments.jobs % count)
            out = stage.path(f"{name}.jobs")
            out.touch()
            line = [sys.executable, "-m", "scripts.job_loads.customer", str(stage.home(name)), str(jobs)]
            with stage.path(f"{name}.log").open("ab") as log:
                processes[out] = subprocess.Popen(
                    [*line, str(arguments.seed * 1000 + number), str(out)],
                    cwd=ROOT,
                    env={**os.environ, "PYTHONPATH": str(ROOT)},
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                )
        yield processes
    finally:
        for process in processes.values():
            process.kill()
            process.wait()


def wait_for_customers(stage: Stage, processes: dict[Path, subprocess.Popen[bytes]], jobs: int) -> list[str]:
    """Returns when all are done; what went wrong with them."""
    deadline = time.monotonic() + 300 + SECONDS_A_JOB_MAX * jobs
    shown = 0
    while any(process.poll() is None for process in processes.values()):
        done = sum(len(path.read_text().splitlines()) for path in processes)
        if done >= shown + max(10, jobs // 20):
            shown = done
            stage.say(f"  {done} of {jobs} jobs are over")
        if time.monotonic() > deadline:
            return ["the customers take too long"]
        time.sleep(POLL_SECONDS)
    failed = (path.with_suffix(".log") for path, process in processes.items() if process.returncode)
    return [f"{path.stem} gave up: {path.read_text(errors='replace').strip()[-300:]}" for path in failed]


def close_books(
    scene: Scene, before: dict[str, int], outs: dict[Path, subprocess.Popen[bytes]]
) -> tuple[dict[str, Any], list[str]]:
    """Compare wallets, donors and the ledger, which one member's replica gives, verified anew."""
    stage, problems = scene.stage, []
    stage.title("The books")
    try:
        stage.wait_until("all replicas are equal", partial(have_equal_states, stage))
    except DemoFailed as failure:
        problems.append(str(failure))
    balances = {name: (before[name], scene.read_balance(name)) for name in scene.wallets}
    jobs = [json.loads(line) for path in outs for line in path.read_text().splitlines()]
    stage.stop(AUDITOR)
    ledger = verify_ledger(NodeHome(stage.home(AUDITOR))).replica.ledger
    earned = {
        machine: sum(ledger.balances.get(decode_address(Kind.ACCOUNT, address), {}).values())
        for machine, address in scene.donors.items()
    }
    holds = [{"hold": hold.hex(), "is_open": state.is_open} for hold, state in ledger.holds.items()]
    figures, more = sum_up(jobs, earned, balances, holds)
    if jobs:
        seconds = [job["seconds"] for job in jobs]
        figures["job_seconds"] = {"median": statistics.median(seconds), "most": max(seconds)}
    return figures, problems + more


def audit(scene: Scene) -> tuple[Any, list[str]]:
    """`allmende node audit --against slurm`, by a member whose node does not run."""
    words = ("--home", scene.stage.home(AUDITOR), "--against", "slurm", "--donor-home", scene.stage.home("slurm"))
    try:
        result = scene.stage.allmende_json("node", "audit", *words, quiet=True)
    except DemoFailed as failure:
        return None, [f"the audit against Slurm: {failure}"]
    return result, [f"the audit against Slurm: {difference}" for difference in result["differences"]]


def _print(result: dict[str, Any]) -> None:
    for name, value in result.items():
        if name == "problems":
            continue
        if isinstance(value, dict):
            print(name.replace("_", " "))
            for key, one in value.items():
                print(f"  {key:<32} {one if one != [] else 'none'}")
        else:
            print(f"{name.replace('_', ' '):<34} {value}")
    for problem in result["problems"]:
        print(f"not as it should be: {problem}", file=sys.stderr)
    print("everything holds" if not result["problems"] else f"{len(result['problems'])} problems")


if __name__ == "__main__":
    sys.exit(main())
