"""Jobs on a real Slurm cluster: how each ends, what it is charged for, and what is left when a part was killed."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from node.donor.executors.executor import JobCommand, JobLost, JobNotStarted, Limits, Outcome
from node.donor.executors.slurm import SlurmExecutor, SlurmJob
from node.donor.executors.slurm_commands import parse_accounting, parse_size, parse_time
from node.donor.executors.slurm_settings import SlurmSettings
from tests.node.donor.slurm_cluster import SlurmCluster

MEBIBYTE = 1 << 20
PATIENCE_SECONDS = 60.0


def make_limits(*, wall_seconds: float = 60, gpus: int = 0, disk_bytes: int = 20 * MEBIBYTE) -> Limits:
    return Limits(1, 200 * MEBIBYTE, 64, disk_bytes, wall_seconds, gpus)


def make_command(program: str) -> JobCommand:
    return JobCommand(program, MEBIBYTE, {"GREETING": "hello"})


def make_settings(cluster: SlurmCluster, name: str) -> SlurmSettings:
    return SlurmSettings(
        str(cluster.shared / name),
        prefix=list(cluster.prefix),
        gpu_device_prefix=cluster.gpu_prefix,
        poll_seconds=0.1,
    )


@pytest.fixture
def settings(slurm_cluster: SlurmCluster, request: pytest.FixtureRequest) -> SlurmSettings:
    return make_settings(slurm_cluster, request.node.name)


@pytest.fixture
async def executor(settings: SlurmSettings) -> SlurmExecutor:
    executor = SlurmExecutor(settings)
    await executor.sweep()
    return executor


async def run(executor: SlurmExecutor, program: str, limits: Limits | None = None) -> tuple[Outcome, bytes]:
    """(the outcome, what was printed)."""
    with trio.fail_after(PATIENCE_SECONDS):
        outcome = await executor.run("job", make_command(program), limits or make_limits())
    return outcome, outcome.log_path.read_bytes()


class Running:
    """A job under way; `outcome` stands once it has ended."""

    outcome: Outcome

    def __init__(self, job: SlurmJob) -> None:
        self.job = job


@asynccontextmanager
async def running(executor: SlurmExecutor, program: str, limits: Limits | None = None) -> AsyncIterator[Running]:
    """The job's program runs inside the block, and behind it the job has ended."""
    async with trio.open_nursery() as nursery:
        nursery.cancel_scope.deadline = trio.current_time() + PATIENCE_SECONDS

        async def run_it(task_status):
            found.append(
                await executor.run("job", make_command(program), limits or make_limits(), task_status=task_status)
            )

        found: list[Outcome] = []
        under_way = Running(await nursery.start(run_it))
        yield under_way
    under_way.outcome = found[0]


async def wait_until(holds: Callable[[], bool]) -> None:
    with trio.fail_after(PATIENCE_SECONDS):
        while not holds():
            await trio.sleep(0.02)


def list_outputs(outcome: Outcome) -> dict[str, str]:
    return {path.name: path.read_text() for path in outcome.output_directory.iterdir()}


SIMPLE = {
    "walls": ('id -u; ls /home /root; echo "$GREETING" >out/said; ! cat /dev/tcp/1.1.1.1/53', make_limits()),
    "status": ("exit 7", make_limits()),
    "memory": ("/usr/bin/python3 -c 'x = bytearray(900 << 20)'", make_limits()),
    "time": ("echo kept >out/partial; sleep 600", make_limits(wall_seconds=3)),
    "daemon": ("(setsid sh -c 'sleep 87654 & sleep 87654' >/dev/null 2>&1 &); exit 0", make_limits()),
    "shy": ("/usr/bin/python3 -c 'import os; os.ftruncate(1, 0); os.ftruncate(2, 0)'; exit 4", make_limits()),
    "gpu": ("ls /dev/nvidia*; echo $CUDA_VISIBLE_DEVICES", make_limits(gpus=1)),
    "disk": ("for n in 1 2 3 4; do head -c 1000000 /dev/zero >out/$n; done; sleep 60", make_limits(disk_bytes=2 << 20)),
}
"""Programs whose end is looked at by one test each. They run side by side."""


@pytest.fixture(scope="module")
def ends(slurm_cluster: SlurmCluster) -> dict[str, Outcome]:
    settings = make_settings(slurm_cluster, "simple")

    async def run_all() -> dict[str, Outcome]:
        found = {}
        executor = SlurmExecutor(settings)
        await executor.sweep()

        async def run_one(name: str, program: str, limits: Limits) -> None:
            found[name] = await executor.run(name, make_command(program), limits)

        with trio.fail_after(2 * PATIENCE_SECONDS):
            async with trio.open_nursery() as nursery:
                for name, (program, limits) in SIMPLE.items():
                    nursery.start_soon(run_one, name, program, limits)
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("node.donor.executors.slurm.DISK_SECONDS", 0.5)
        return trio.run(run_all)


def test_a_job_runs_behind_the_walls_of_the_sandbox_and_hands_over_its_results(ends):
    outcome = ends["walls"]
    assert (outcome.state, outcome.exit_status) == ("exited", 0)
    assert outcome.log_path.read_bytes().startswith(b"65534\n")
    assert list_outputs(outcome) == {"said": "hello\n"}


def test_a_programs_own_exit_status_is_reported(ends):
    assert (ends["status"].state, ends["status"].exit_status) == ("exited", 7)


def test_a_job_over_its_memory_says_so(ends):
    assert (ends["memory"].state, ends["memory"].exit_status) == ("out_of_memory", None)


def test_the_wall_time_ends_a_job_to_the_second_where_slurm_counts_minutes(ends):
    outcome = ends["time"]
    assert (outcome.state, outcome.exit_status) == ("walltime", None)
    assert 3000 <= outcome.usage.wall_ms < 20_000
    assert list_outputs(outcome) == {"partial": "kept\n"}


def test_a_job_that_ends_leaves_no_daemon_behind(ends, slurm_cluster):
    assert ends["daemon"].exit_status == 0
    assert slurm_cluster.call("pgrep", "-f", "sleep 87654").returncode == 1


def test_a_job_that_wipes_out_what_it_printed_has_run_all_the_same(ends):
    assert (ends["shy"].state, ends["shy"].exit_status) == ("exited", 4)
    assert ends["shy"].log_path.read_bytes() == b""


def test_gpus_are_handed_out_and_those_of_others_do_not_exist_for_a_job(ends):
    outcome = ends["gpu"]
    assert outcome.exit_status == 0
    devices, visible = outcome.log_path.read_text().splitlines()
    assert devices.startswith("/dev/nvidia")
    assert visible == "0"


def test_a_job_that_keeps_more_than_its_disk_is_ended(ends):
    assert ends["disk"].state == "killed"


async def test_released_jobs_leave_nothing_behind(executor):
    outcome, _ = await run(executor, "true")
    await executor.release("job")
    await executor.release("job")
    assert not outcome.output_directory.parent.exists()


async def test_a_job_that_is_stopped_leaves_no_process_behind_however_it_hides(executor, slurm_cluster):
    program = "(setsid sh -c 'sleep 98765 & sleep 98765' >/dev/null 2>&1 &); echo up; sleep 98765"
    async with running(executor, program) as under_way:
        await wait_until(lambda: b"up" in under_way.job.read_log_tail(100))
        assert slurm_cluster.call("pgrep", "-f", "sleep 98765").returncode == 0
        under_way.job.stop()
    assert under_way.outcome.state == "killed"
    assert slurm_cluster.call("pgrep", "-f", "sleep 98765").returncode == 1


async def test_a_job_that_others_end_is_not_its_owners_doing(executor, slurm_cluster):
    async with running(executor, "sleep 60") as under_way:
        slurm_cluster.call("scancel", "--name", under_way.job.note.name)
    assert under_way.outcome.state == "preempted"


async def test_a_job_whose_node_fails_is_lost(executor, slurm_cluster):
    async with running(executor, "sleep 60") as under_way:
        (node,) = slurm_cluster.read("squeue", "-h", "-n", under_way.job.note.name, "-o", "%N").split()
        slurm_cluster.call("scontrol", "update", f"NodeName={node}", "State=DOWN", "Reason=test")
    slurm_cluster.call("scontrol", "update", f"NodeName={node}", "State=RESUME")
    assert under_way.outcome.state == "lost"


async def test_a_suspended_job_stands_still_and_is_not_charged_meanwhile(executor):
    started = time.monotonic()
    async with running(executor, "while sleep 0.05; do echo .; test -e out/end && exit 0; done") as under_way:
        job = under_way.job
        await wait_until(lambda: job.log_bytes > 0)
        job.suspend()
        await wait_until(lambda: job.is_suspended)
        suspended = time.monotonic()
        await wait_until(lambda: time.monotonic() > suspended + 2.5)  # Slurm warns the processes two seconds before
        printed = job.log_bytes
        await wait_until(lambda: time.monotonic() > suspended + 4)
        assert job.log_bytes == printed
        job.resume()
        await wait_until(lambda: job.log_bytes > printed)
        reading = job.usage().wall_ms
        (job.folder.work / "out" / "end").touch()
    assert under_way.outcome.exit_status == 0
    assert reading <= under_way.outcome.usage.wall_ms <= (time.monotonic() - started - 4 + 1) * 1000


async def test_more_gpus_than_the_cluster_has_are_refused(executor):
    with pytest.raises(JobNotStarted, match="not available"):
        await run(executor, "true", make_limits(gpus=9))


async def test_a_checkpoint_is_copied_only_as_it_was_at_one_moment(executor, tmp_path):
    quiet, busy = tmp_path / "quiet", tmp_path / "busy"
    quiet.mkdir()
    busy.mkdir()
    program = "mkdir checkpoint; echo 42 >checkpoint/step; touch out/made; sleep 60"
    async with running(executor, program) as under_way:
        job = under_way.job
        await wait_until((job.folder.work / "out" / "made").exists)
        assert job.copy_checkpoint(quiet, MEBIBYTE)
        assert (quiet / "step").read_text() == "42\n"
        assert not job.copy_checkpoint(busy, 2)
        job.stop()


# -- killed halfway -----------------------------------------------------------------------------------------------


async def test_a_job_that_the_controller_forgot_in_the_queue_runs_once(executor, slurm_cluster, monkeypatch):
    slurm_cluster.call("scontrol", "update", "PartitionName=main", "State=DOWN")
    submissions = []
    call = executor._slurm.call

    async def call_and_kill(*command):
        answer = await call(*command)
        if command[0] == "sbatch":
            submissions.append(answer.strip())
            if len(submissions) == 1:
                await trio.to_thread.run_sync(lambda: slurm_cluster.kill_controller(is_forgetting=True))
                await trio.to_thread.run_sync(slurm_cluster.start_controller)
                slurm_cluster.call("scontrol", "update", "PartitionName=main", "State=UP")
        return answer

    monkeypatch.setattr(executor._slurm, "call", call_and_kill)
    outcome, printed = await run(executor, "echo once")
    assert (outcome.state, printed) == ("exited", b"once\n")
    assert len(submissions) == 2


async def test_a_job_that_the_controller_forgot_while_it_ran_is_lost_and_gone(executor, slurm_cluster):
    async with running(executor, "echo up; sleep 76543") as under_way:
        await wait_until(lambda: under_way.job.log_bytes > 0)
        await trio.to_thread.run_sync(lambda: slurm_cluster.kill_controller(is_forgetting=True))
        await trio.to_thread.run_sync(slurm_cluster.start_controller)
    assert under_way.outcome.state == "lost"
    await wait_until(lambda: slurm_cluster.call("pgrep", "-f", "sleep 76543").returncode == 1)


async def test_a_job_goes_on_while_the_controller_is_away(executor, slurm_cluster):
    async with running(executor, "while sleep 0.05; do test -e out/end && exit 5; done") as under_way:
        await trio.to_thread.run_sync(slurm_cluster.write_down, under_way.job.note.name)
        await trio.to_thread.run_sync(slurm_cluster.kill_controller)
        (under_way.job.folder.work / "out" / "end").touch()
        await trio.to_thread.run_sync(slurm_cluster.start_controller)
    assert (under_way.outcome.state, under_way.outcome.exit_status) == ("exited", 5)


_AGENT = """
import msgspec, sys, trio
from node.donor.executors.executor import JobCommand, Limits
from node.donor.executors.slurm import SlurmExecutor
from node.donor.executors.slurm_settings import SlurmSettings

async def main():
    executor = SlurmExecutor(msgspec.json.decode(sys.argv[1], type=SlurmSettings))
    await executor.sweep()
    async with trio.open_nursery() as nursery:
        async def run(task_status):
            command = JobCommand(sys.argv[2], 1 << 20, {})
            await executor.run("job", command, Limits(1, 200 << 20, 64, 20 << 20, 60), task_status=task_status)
        await nursery.start(run)
        print("started", flush=True)

trio.run(main)
"""


@pytest.mark.parametrize("is_over_meanwhile", [True, False])
async def test_a_new_agent_takes_up_what_a_killed_one_had_started(settings, is_over_meanwhile):
    import msgspec

    program = "while sleep 0.05; do test -e out/end && exit 6; done"
    line = [sys.executable, "-c", _AGENT, msgspec.json.encode(settings).decode(), program]
    agent = subprocess.Popen(line, stdout=subprocess.PIPE, cwd=Path(__file__).parents[3])
    assert agent.stdout is not None
    await trio.to_thread.run_sync(agent.stdout.readline)
    agent.send_signal(signal.SIGKILL)
    agent.wait()
    agent.stdout.close()
    end = Path(settings.shared_directory) / "job" / "work" / "out" / "end"
    executor = SlurmExecutor(settings)
    await executor.sweep()
    if is_over_meanwhile:
        end.touch()
    with trio.fail_after(PATIENCE_SECONDS):
        async with trio.open_nursery() as nursery:

            async def take_up(task_status):
                found.append(await executor.take_up("job", make_limits(), MEBIBYTE, task_status=task_status))

            found: list[Outcome] = []
            await nursery.start(take_up)
            end.touch()
    assert (found[0].state, found[0].exit_status) == ("exited", 6)


async def test_a_job_that_nobody_knows_cannot_be_taken_up(executor):
    with pytest.raises(JobLost):
        await executor.take_up("stranger", make_limits(), MEBIBYTE)


async def test_an_agent_that_is_told_to_leave_takes_its_job_along(executor, slurm_cluster):
    with trio.fail_after(PATIENCE_SECONDS):
        async with trio.open_nursery() as nursery:
            await nursery.start(
                lambda task_status: executor.run(
                    "job", make_command("sleep 65432"), make_limits(), task_status=task_status
                )
            )
            nursery.cancel_scope.cancel()
    assert slurm_cluster.call("pgrep", "-f", "sleep 65432").returncode == 1


# -- reading ------------------------------------------------------------------------------------------------------


def test_times_and_sizes_are_read_as_slurm_writes_them():
    assert [parse_time(text) for text in ("0:07", "1:02:03", "2-00:00:01", "00:01.500", "INVALID")] == [
        7,
        3723,
        172801,
        1,
        0,
    ]
    assert [parse_size(text) for text in ("", "0", "200M", "1.50G", "12K")] == [0, 0, 200 << 20, 3 << 29, 12 << 10]


def test_accounting_is_read_with_what_the_steps_of_a_job_used():
    lines = [
        "4|CANCELLED by 0|0:15|9|2026-11-24T22:47:39|cpu=2,gres/gpu=1,mem=200M|||allmende-x|ab",
        "4.batch|CANCELLED|0:15|9|2026-11-24T22:47:39|cpu=2|137992K|cpu=00:01:02,mem=137992K|batch|",
    ]
    (job,) = parse_accounting("\n".join(lines).replace("|", "\x1f"))
    assert (job.state, job.exit_signal, job.elapsed_seconds, job.comment) == ("CANCELLED", 15, 9, "ab")
    assert (job.count("cpu"), job.count("gres/gpu"), job.memory_bytes) == (2, 1, 200 << 20)
    assert (job.cpu_seconds, job.memory_peak_bytes) == (62, 137992 << 10)


def test_a_state_that_comes_before_the_end_is_not_the_last_word():
    early = "5|FAILED|0:0|2|Unknown|cpu=1,mem=200M|||allmende-x|ab"
    (job,) = parse_accounting(early.replace("|", "\x1f"))
    assert not job.is_ended
