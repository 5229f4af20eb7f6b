"""What Allmende adds to a job: from `allmende job run` to its first line of output, against the executor alone.

Alone is a bare bubblewrap call that prints a line, and a bare `sbatch` until the line is in its output file. All take
their turns in one run, so that a noisy machine hits each; the parts come from what the command says as it goes on.
"""

from __future__ import annotations

import os
import shutil
import statistics
import subprocess
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path

from scripts.demonstration.stage import DemoFailed, Stage
from scripts.job_loads.scene import Scene
from tests.node.donor.slurm_cluster import SlurmCluster, find_obstacle, running_cluster

RUNS = 7
POLL_SECONDS = 0.001
PATIENCE_SECONDS = 60.0
LINE = "the first line"
PARTS = {
    "start": "for a quote",
    "quote": "has given a quote",
    "hold": "are put aside",
    "staging": "the donor has accepted",
    "begin": "the job runs",
}
"""What the command says last in each part; the job's own line ends the last one."""
BARE = ["bwrap", "--ro-bind", "/", "/", "--unshare-all", "--die-with-parent", "sh", "-c", f"echo {LINE}"]


def measure() -> dict[str, object]:
    """Medians in milliseconds and their ratios; without Slurm's packages only those of the sandbox."""
    with ExitStack() as stack:
        stage = stack.enter_context(Stage(Path(tempfile.mkdtemp(prefix="allmende-bench-")), keep=False))
        stack.callback(shutil.rmtree, stage.folder.parent, ignore_errors=True)
        cluster = None if find_obstacle() else stack.enter_context(running_cluster())
        scene = Scene(stage, cluster)
        scene.build(1)
        result: dict[str, object] = {"sandbox": _compare(scene, "sandbox-1", None)}
        if cluster is not None:
            result["slurm"] = _compare(scene, "slurm", cluster)
    return result


def _compare(scene: Scene, machine: str, cluster: SlurmCluster | None) -> Mapping[str, object]:
    parts: defaultdict[str, list[float]] = defaultdict(list)
    wholes, bares = [], []
    for _ in range(RUNS):
        bares.append(_time_bare() if cluster is None else _time_sbatch(cluster))
        moments = _time_job(scene, machine)
        wholes.append(sum(moments.values()))
        for name, value in moments.items():
            parts[name].append(value)
    whole, bare = statistics.median(wholes), statistics.median(bares)
    return {
        "job_run_ms": round(whole, 1),
        "bare_ms": round(bare, 1),
        "ratio": round(whole / bare, 1),
        **{f"{name}_ms": round(statistics.median(values), 1) for name, values in parts.items()},
    }


def _time_job(scene: Scene, machine: str) -> dict[str, float]:
    """Milliseconds of each part of one job. Raises: DemoFailed when the job does not end well."""
    stage = scene.stage
    job, home = stage.path("job.yaml"), stage.home(scene.wallets[0])
    stage.path("work").mkdir(exist_ok=True)
    needs = "resources: {cpus: 1, memory: 0.25, disk_size: 0.05}"
    job.write_text(f"name: first-line\nworkdir: work\nrun: echo {LINE}; sleep 1\nmax_duration: 1m\n{needs}\n")
    process = subprocess.Popen(
        [stage.command, "job", "run", str(job), "--home", str(home), "--donor", machine, "-y"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "HOME": str(stage.folder)},
    )
    guard = threading.Timer(PATIENCE_SECONDS, process.kill)
    guard.start()
    before, moments, said = time.perf_counter(), {}, []
    waited_for = {**PARTS, "log": LINE}
    with process:
        assert process.stdout is not None
        for line in process.stdout:
            said.append(line)
            now = time.perf_counter()
            name = next((name for name, words in waited_for.items() if words in line), None)
            if name is not None:
                # What comes in one block, such as the start and the first line, is one part.
                moments[name], before = (now - before) * 1000, now
                del waited_for[name]
            if LINE in line:
                break
        process.stdout.read()
    guard.cancel()
    if process.returncode or LINE not in said[-1]:
        raise DemoFailed(f"the job was not run: {''.join(said)[-500:]}")
    return moments


def _time_bare() -> float:
    started = time.perf_counter()
    with subprocess.Popen(BARE, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        return (time.perf_counter() - started) * 1000


def _time_sbatch(cluster: SlurmCluster) -> float:
    folder = Path(tempfile.mkdtemp(dir=cluster.shared))
    output = folder / "output"
    started = time.perf_counter()
    cluster.call("sbatch", "--mem=250", f"--output={output}", "--wrap", f"echo {LINE}")
    while not (output.exists() and output.stat().st_size):
        if time.perf_counter() - started > PATIENCE_SECONDS:
            raise DemoFailed("Slurm did not run the job")
        time.sleep(POLL_SECONDS)
    return (time.perf_counter() - started) * 1000
