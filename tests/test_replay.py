"""A replay is the product's own rules on somebody's real jobs: it must keep the books, and be the same each time."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest

from node.errors import UserError
from protocol.metering import JobState
from scripts.replays.assumptions import Assumptions
from scripts.replays.devices import DEVICES, find_device
from scripts.replays.fates import draw_absences, draw_fate
from scripts.replays.jobs import Job, make_demand
from scripts.replays.ledger import Party
from scripts.replays.replay import Replay
from scripts.replays.report import build_report, check_conservation, compute_quantile
from scripts.replays.synthetic import make_jobs, make_machines
from scripts.replays.trace import TracedJob, TracedMachine, parse_time, read_jobs, read_machines
from scripts.replays.waiting import WaitingRoom

ROOT = Path(__file__).resolve().parent.parent
MINUTE_MS = 60_000
HOUR_MS = 60 * MINUTE_MS
ONE_GPU = TracedMachine("one", 8, 2**36, 1, "T4")
CALM = Assumptions(
    failed_share=0, cancelled_share=0, underestimate_share=0, failure_hours=1e9, eviction_hours=1e9, checkpoint_share=0
)
"""Every job comes to its own good end, and no donor goes away."""

JOBS_HEAD = "timestamp,duration,num_gpus,cluster\n"
MACHINES_HEAD = "sn,cpu_milli,memory_mib,gpu,model\n"


def make_job(minute: float = 0, minutes: float = 10, gpus: int = 1) -> TracedJob:
    return TracedJob(int(minute * MINUTE_MS), int(minutes * MINUTE_MS), gpus, "University A")


def run_replay(
    jobs: list[TracedJob],
    machines: list[TracedMachine],
    *,
    assumptions: Assumptions = CALM,
    hours: float = 4,
    member_count: int = 1,
    seed: int = 1,
) -> Replay:
    replay = Replay(jobs, machines, hours=hours, member_count=member_count, seed=seed, assumptions=assumptions)
    replay.run()
    return replay


def replay_synthetic(seed: int, member_count: int = 1) -> Replay:
    restless = Assumptions(failure_hours=6, eviction_hours=6)
    jobs, machines = make_jobs(3, seed), make_machines(4)
    return run_replay(jobs, machines, assumptions=restless, hours=3, member_count=member_count, seed=seed)


# -- whole replays ----------------------------------------------------------------------------------------------------


def test_a_replay_is_the_same_each_time_and_another_one_by_another_seed() -> None:
    first, again, other = (build_report(replay_synthetic(seed)) for seed in (1, 1, 2))
    assert first == again
    assert first != other


def test_charges_are_earnings_and_the_rest_comes_back() -> None:
    replay = replay_synthetic(3)
    report = build_report(replay)
    assert report["all_runs"]["runs"] > 20
    assert report["all_runs"]["charged"] == report["donors"]["earned"] > 0
    assert sum(end["charged"] for end in report["ends"].values()) == report["donors"]["earned"]
    assert report["all_runs"]["refunded"] == report["all_runs"]["held"] - report["all_runs"]["charged"]
    replay.jobs[0].runs[0].charged += 1
    with pytest.raises(AssertionError):
        check_conservation(replay)


def test_four_members_agree_and_store_all_batches_of_all() -> None:
    alone, together = (build_report(replay_synthetic(1, members))["ledger"] for members in (1, 4))
    assert alone["records_by_kind"] == together["records_by_kind"]
    assert alone["bytes"] < together["bytes"]
    assert (alone["members"], together["members"]) == (1, 4)


def test_a_job_without_mishap_costs_two_records_and_what_it_used() -> None:
    replay = run_replay([make_job(minutes=30)], [ONE_GPU])
    report = build_report(replay)
    assert report["ledger"]["records_by_kind"] == {"hold": 1, "settle": 1}
    assert report["ledger"]["ticks"] == 3
    assert report["all_runs"]["charged"] == 1800 * find_device("T4").weight
    assert report["machines"]["occupied_share"] == report["machines"]["paid_share"] == 0.125


def test_a_job_that_waits_is_placed_when_a_machine_frees() -> None:
    replay = run_replay([make_job(0, 30), make_job(10, 5)], [ONE_GPU])
    first, second = replay.jobs
    assert second.runs[0].started_ms == first.runs[0].ended_ms == 30 * MINUTE_MS
    assert build_report(replay)["waiting_seconds"]["max"] == 20 * 60


def test_a_job_larger_than_every_machine_is_never_placed() -> None:
    report = build_report(run_replay([make_job(gpus=2), make_job()], [ONE_GPU]))
    assert (report["jobs"]["never_placed"], report["jobs"]["too_large"]) == (1, 1)


def test_what_runs_or_waits_when_the_hours_are_over_is_settled_and_told_apart() -> None:
    report = build_report(run_replay([make_job(0, 600), make_job(1, 5)], [ONE_GPU], hours=1))
    assert report["ends"]["CUT_AT_THE_END"]["runs"] == report["jobs"]["running_at_the_end"] == 1
    assert report["jobs"]["waiting_at_the_end"] == 1
    assert report["machines"]["gpu_hours_occupied"] == 1


def test_a_wall_time_that_was_too_short_ends_the_job() -> None:
    short = replace(CALM, underestimate_share=1)
    (job,) = run_replay([make_job(minutes=60)], [ONE_GPU], assumptions=short).jobs
    assert job.runs[0].state == JobState.WALLTIME
    assert job.runs[0].charged == job.runs[0].held


def test_checkpoints_save_the_work_that_an_eviction_would_lose() -> None:
    restless = replace(CALM, eviction_hours=1, evicted_away_hours=0.1, runs_max=100)
    kept = run_replay([make_job(minutes=150)], [ONE_GPU], assumptions=replace(restless, checkpoint_share=1), hours=24)
    lost = run_replay([make_job(minutes=150)], [ONE_GPU], assumptions=restless, hours=24)
    runs = kept.jobs[0].runs
    assert len(runs) > 1
    assert sum(run.elapsed_ms for run in runs) == 150 * MINUTE_MS
    assert all(run.charged > 0 for run in runs)
    evicted = [run for run in lost.jobs[0].runs if run.state == JobState.EVICTED]
    assert evicted
    assert all(run.charged == 0 and run.lost_ms == run.elapsed_ms for run in evicted)


def test_after_a_failure_a_checkpoint_loses_less_than_the_time_between_two_ticks() -> None:
    failing = replace(
        CALM, failure_hours=0.5, failed_away_hours=0.1, vanished_share=0, checkpoint_share=1, runs_max=100
    )
    (job,) = run_replay([make_job(minutes=150)], [ONE_GPU], assumptions=failing, hours=24).jobs
    failed = [run for run in job.runs if run.state == JobState.DONOR_FAILED]
    assert failed
    assert all(run.lost_ms <= failing.tick_seconds * 1000 for run in failed)
    assert job.is_done


def test_from_a_donor_that_never_comes_back_everything_is_reclaimed() -> None:
    vanishing = replace(CALM, failure_hours=0.5, vanished_share=1, checkpoint_share=1)
    report = build_report(run_replay([make_job(minutes=600)], [ONE_GPU], assumptions=vanishing, hours=12))
    assert report["ledger"]["records_by_kind"] == {"hold": 1, "reclaim_request": 1, "reclaim": 1}
    assert report["donors"]["earned"] == 0
    assert report["ends"]["DONOR_FAILED"]["reclaimed_runs"] == 1


# -- parts ------------------------------------------------------------------------------------------------------------


def test_the_oldest_job_that_fits_goes_first_and_equals_never_overtake() -> None:
    room, party = WaitingRoom(), Party("somebody", None, b"", b"")  # type: ignore[arg-type]  # nobody signs here
    jobs = [
        Job(number, make_job(gpus=gpus), draw_fate(make_job(), number, CALM, 1), party, make_demand(gpus, CALM))
        for number, gpus in enumerate((8, 1, 2, 1))
    ]
    for job in jobs:
        room.add(job)
    assert room.take(lambda job: job.demand.gpus <= 2) is jobs[1]
    assert room.take(lambda job: job.demand.gpus <= 2) is jobs[2]
    assert room.take(lambda job: True) is jobs[0]
    assert room.take(lambda job: job.demand.gpus > 1) is None
    assert len(room) == 1


def test_jobs_end_as_often_in_each_way_as_was_published() -> None:
    assumed = Assumptions()
    ends = [draw_fate(make_job(), number, assumed, 1).end for number in range(4000)]
    assert ends.count(JobState.USER_FAILED) / 4000 == pytest.approx(assumed.failed_share, abs=0.03)
    assert ends.count(JobState.CANCELLED) / 4000 == pytest.approx(assumed.cancelled_share, abs=0.03)


def test_a_machine_is_away_once_at_a_time_and_a_vanished_one_for_good() -> None:
    absences = draw_absences("one", 1000 * HOUR_MS, Assumptions(failure_hours=20, eviction_hours=20), 1)
    assert len(absences) > 3
    for one, after in pairwise(absences):
        assert one.away_ms > 0
        assert after.starts_ms >= one.starts_ms + one.away_ms


def test_the_devices_of_the_traces_have_weights_below_the_reference() -> None:
    assert {model: device.weight for model, device in DEVICES.items()} == {
        "P100": 163, "T4": 187, "V100M16": 328, "V100M32": 414, "A10": 328, "G2": 328, "G3": 414,
    }  # fmt: skip


@pytest.mark.parametrize(("share", "value"), [(0.5, 5), (0.9, 9), (0.99, 10), (1.0, 10)])
def test_a_quantile_is_the_least_value_that_so_many_do_not_exceed(share: float, value: int) -> None:
    assert compute_quantile(range(1, 11), share) == value


# -- reading ----------------------------------------------------------------------------------------------------------


def test_a_trace_is_cut_to_the_hours_that_are_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "jobs.csv"
    rows = ("2017-10-04 23:59:59,5,1,a", "2017-10-05 01:00:00,60.5,2,b", "2017-10-05 00:00:00,7,1,a")
    path.write_text(JOBS_HEAD + "\n".join((*rows, "2017-10-06 00:00:00,9,1,a")))
    jobs, _ = read_jobs(path, parse_time("2017-10-05"), 24)
    assert jobs == [TracedJob(0, 7000, 1, "a"), TracedJob(HOUR_MS, 60_500, 2, "b")]


@pytest.mark.parametrize(
    ("row", "complaint"),
    [
        ("yesterday,5,1,a", "yesterday"),
        ("2017-10-05 00:00:00,long,1,a", "duration is no number: 'long'"),
        ("2017-10-05 00:00:00,-1,1,a", "duration must lie between"),
        ("2017-10-05 00:00:00,nan,1,a", "duration must lie between"),
        ("2017-10-05 00:00:00,5,1.5,a", "num_gpus must be a whole number"),
        ("2017-10-05 00:00:00,5,1,", "cluster is a name"),
        ("2017-10-05 00:00:00,5", "shorter than the head"),
    ],
)
def test_a_malformed_job_is_refused_in_one_line_that_names_its_row(tmp_path: Path, row: str, complaint: str) -> None:
    path = tmp_path / "jobs.csv"
    path.write_text(f"{JOBS_HEAD}2017-10-05 00:00:00,5,1,a\n{row}\n")
    with pytest.raises(UserError, match="line 3") as caught:
        read_jobs(path, None, 24)
    assert complaint in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_machine_whose_model_nobody_weighed_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "machines.csv"
    path.write_text(f"{MACHINES_HEAD}a,8000,32768,1,T4\nb,8000,32768,1,Abacus\n")
    with pytest.raises(UserError, match=r"line 3: .*Abacus"):
        read_machines(path)


def test_a_machine_that_stands_there_twice_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "machines.csv"
    path.write_text(f"{MACHINES_HEAD}a,8000,32768,1,T4\na,8000,32768,1,T4\n")
    with pytest.raises(UserError, match="a stands there 2 times"):
        read_machines(path)


def test_assumptions_that_cannot_be_are_refused() -> None:
    with pytest.raises(UserError, match="--failure-hours"):
        Assumptions(failure_hours=0)
    with pytest.raises(UserError, match="more than all jobs"):
        Assumptions(failed_share=0.6, cancelled_share=0.6)


def test_a_file_without_the_columns_or_no_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "jobs.csv.gz"
    with pytest.raises(UserError, match="cannot read"):
        read_jobs(path, None, 24)
    path.write_bytes(b"no gzip")
    with pytest.raises(UserError, match="cannot read"):
        read_jobs(path, None, 24)
    plain = tmp_path / "jobs.csv"
    plain.write_text("a,b\n1,2\n")
    with pytest.raises(UserError, match="lacks the column timestamp"):
        read_jobs(plain, None, 24)


def test_the_script_prints_a_document_of_a_stable_shape() -> None:
    command = [sys.executable, str(ROOT / "scripts" / "replay"), "--hours", "1", "--donors", "2", "--json"]
    report = json.loads(subprocess.run(command, check=True, capture_output=True, cwd=ROOT).stdout)
    assert report["version"] == 1
    assert set(report) == {
        "version", "machines", "jobs", "waiting_seconds", "ends", "all_runs", "retries", "lost_work", "ledger",
        "donors", "trace", "wall_seconds",
    }  # fmt: skip
    assert list(report["ends"]) == [
        "DONE", "USER_FAILED", "DONOR_FAILED", "EVICTED", "CANCELLED", "WALLTIME", "CUT_AT_THE_END",
    ]  # fmt: skip
