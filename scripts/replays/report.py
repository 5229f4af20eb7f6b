"""What a replay found, as plain figures: one JSON document of a stable shape (`version` counts its changes).

Money is in millicredits, times are in seconds, work is in GPU-hours. The figures come from the jobs, donors and books
of the replay; that they agree to the millicredit is asserted, not reported.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from protocol.metering import CHARGED_STATES, END_STATES, JobState
from scripts.replays.jobs import Job, Run
from scripts.replays.ledger import GRANTED
from scripts.replays.replay import Replay

REPORT_VERSION = 1
RECORDS_AIM = 4
"""A job shall cost the ledger no more records than this."""
_HOUR_MS = 3_600_000


def build_report(replay: Replay) -> dict[str, Any]:
    """All figures of a replay that has run."""
    runs = [run for job in replay.jobs for run in job.runs]
    check_conservation(replay)
    return {
        "version": REPORT_VERSION,
        "machines": _report_machines(replay, runs),
        "jobs": _report_jobs(replay),
        "waiting_seconds": _report_waiting(replay.jobs),
        "ends": {state: _report_runs(some) for state, some in _group_by_end(runs)},
        "all_runs": _report_runs(runs),
        "retries": _report_retries(replay.jobs),
        "lost_work": {
            "with_checkpoints": _report_lost(job for job in replay.jobs if job.fate.has_checkpoints),
            "without_checkpoints": _report_lost(job for job in replay.jobs if not job.fate.has_checkpoints),
        },
        "ledger": _report_ledger(replay),
        "donors": _report_donors(replay),
    }


def check_conservation(replay: Replay) -> None:
    """Assert that the charges of all runs are what the donors have, that each person has the rest of its grant, and
    that nobody has paid for more than was put aside."""
    books = replay.books
    runs = [(job, run) for job in replay.jobs for run in job.runs]
    assert all(0 <= run.charged <= run.held for _, run in runs), "nobody pays more than was put aside"
    earned: Counter[bytes] = Counter()
    spent: Counter[bytes] = Counter()
    for job, run in runs:
        earned[run.donor.party.account] += run.charged
        spent[job.payer.account] += run.charged
    for donor in replay.donors:
        assert books.get_earned(donor.party) == earned[donor.party.account], "a donor has what it charged"
    for people in replay.people.values():
        for person in people:
            assert books.get_left(person) == GRANTED - spent[person.account], "a payer has the rest back"


def _hours(gpu_ms: int) -> float:
    return round(gpu_ms / _HOUR_MS, 2)


def _share(part: float, whole: float) -> float:
    return round(part / whole, 4) if whole else 0.0


def _report_machines(replay: Replay, runs: Sequence[Run]) -> dict[str, Any]:
    """What was lent, and what of it was sold: occupied by jobs, and paid for."""
    offered = sum(donor.traced.gpus * donor.compute_present_ms(replay.end_ms) for donor in replay.donors)
    occupied = sum(run.request.gpus * run.elapsed_ms for run in runs)
    paid = sum(run.request.gpus * _get_paid_ms(run) for run in runs)
    return {
        "donors": len(replay.donors),
        "gpus": sum(donor.traced.gpus for donor in replay.donors),
        "gpu_hours_offered": _hours(offered),
        "gpu_hours_occupied": _hours(occupied),
        "gpu_hours_paid": _hours(paid),
        "occupied_share": _share(occupied, offered),
        "paid_share": _share(paid, offered),
    }


def _get_paid_ms(run: Run) -> int:
    assert run.reading is not None
    return 0 if run.is_reclaimed else run.reading.paid_ms


def _report_jobs(replay: Replay) -> dict[str, Any]:
    """What became of the jobs. Those too large are larger than every machine: a job runs on one machine. What they
    asked for `in_time` is the work that machines without end would have done within the hours."""
    jobs = replay.jobs
    placed = [job for job in jobs if job.runs]
    too_large = sum(job.is_unplaceable for job in jobs)
    return {
        "submitted": len(jobs),
        "gpu_hours_asked": _hours(sum(job.traced.gpus * job.traced.duration_ms for job in jobs)),
        "gpu_hours_asked_in_time": _hours(
            sum(job.traced.gpus * min(job.traced.duration_ms, replay.end_ms - job.traced.submitted_ms) for job in jobs)
        ),
        "placed": len(placed),
        "ended": sum(job.is_done for job in jobs),
        "running_at_the_end": sum(job.runs[-1].is_cut for job in placed),
        "waiting_again_at_the_end": sum(not (job.is_done or job.is_given_up or job.runs[-1].is_cut) for job in placed),
        "given_up": sum(job.is_given_up for job in jobs),
        "never_placed": len(jobs) - len(placed),
        "never_placed_share": _share(len(jobs) - len(placed), len(jobs)),
        "too_large": too_large,
        "waiting_at_the_end": len(jobs) - len(placed) - too_large,
    }


def _report_waiting(jobs: Iterable[Job]) -> dict[str, float]:
    """From submission to the first start, of jobs that were placed."""
    waits = sorted(job.runs[0].started_ms - job.traced.submitted_ms for job in jobs if job.runs)
    quantiles = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "max": 1.0}
    return {name: compute_quantile(waits, share) / 1000 for name, share in quantiles.items()}


def compute_quantile(ascending: Sequence[int], share: float) -> int:
    """The least value that so many of all values don't exceed; 0 of none."""
    if not ascending:
        return 0
    return ascending[max(0, -(-round(share * 1000) * len(ascending) // 1000) - 1)]


def _group_by_end(runs: Sequence[Run]) -> list[tuple[str, list[Run]]]:
    """By how they ended, in the order of the states; those cut off by the replay's end apart."""
    groups: list[tuple[str, list[Run]]] = [
        (state.value, [run for run in runs if run.state == state and not run.is_cut])
        for state in JobState
        if state in END_STATES and state != JobState.POLICY_KILLED
    ]
    return [*groups, ("CUT_AT_THE_END", [run for run in runs if run.is_cut])]


def _report_runs(runs: Sequence[Run]) -> dict[str, Any]:
    held, charged = sum(run.held for run in runs), sum(run.charged for run in runs)
    return {
        "runs": len(runs),
        "gpu_hours": _hours(sum(run.request.gpus * run.elapsed_ms for run in runs)),
        "held": held,
        "charged": charged,
        "refunded": held - charged,
        "refunded_share": _share(held - charged, held),
        "reclaimed_runs": sum(run.is_reclaimed for run in runs),
    }


def _report_retries(jobs: Sequence[Job]) -> dict[str, int]:
    return {
        "runs_ended_by_donors": sum(run.state not in CHARGED_STATES for job in jobs for run in job.runs),
        "runs_again": sum(len(job.runs) - 1 for job in jobs if job.runs),
        "jobs_run_again": sum(len(job.runs) > 1 for job in jobs),
        "runs_of_a_job_max": max((len(job.runs) for job in jobs), default=0),
    }


def _report_lost(jobs: Iterable[Job]) -> dict[str, Any]:
    """Of runs that donors ended: the work in them, and what of it had to be done again."""
    runs = [run for job in jobs for run in job.runs if run.state not in CHARGED_STATES]
    done = sum(run.request.gpus * run.elapsed_ms for run in runs)
    lost = sum(run.request.gpus * run.lost_ms for run in runs)
    return {
        "runs": len(runs),
        "gpu_hours_done": _hours(done),
        "gpu_hours_lost": _hours(lost),
        "lost_share": _share(lost, done),
    }


def _report_ledger(replay: Replay) -> dict[str, Any]:
    """Counted, not estimated: records as they were written, bytes as batches of all members are stored by each."""
    books = replay.books
    of_jobs = [sum(run.records for run in job.runs) for job in replay.jobs if job.runs]
    records = sum(books.record_counts.values())
    assert records == sum(of_jobs), "every record of these hours belongs to a job"
    return {
        "members": books.member_count,
        "records": records,
        "records_by_kind": {kind.name.lower(): count for kind, count in sorted(books.record_counts.items())},
        "records_per_job": round(records / max(1, len(of_jobs)), 3),
        "records_of_a_job_max": max(of_jobs, default=0),
        "jobs_within_aim_share": _share(sum(count <= RECORDS_AIM for count in of_jobs), len(of_jobs)),
        "record_bytes_per_job": round(books.record_bytes / max(1, len(of_jobs))),
        "bytes_per_job": round(books.batch_bytes / max(1, len(of_jobs))),
        "batches": books.batch_count,
        "bytes": books.batch_bytes,
        "ticks": sum(run.reading.ticks for job in replay.jobs for run in job.runs if run.reading),
    }


def _report_donors(replay: Replay) -> dict[str, Any]:
    """How concentrated the earnings are. HHI: sum of the squared shares, 1/donors when all earn alike, 1 for one."""
    earnings = sorted((replay.books.get_earned(donor.party) for donor in replay.donors), reverse=True)
    total = sum(earnings)
    models: Counter[str] = Counter()
    for donor in replay.donors:
        models[donor.traced.model] += replay.books.get_earned(donor.party)
    return {
        "earned": total,
        "paid_donors": sum(amount > 0 for amount in earnings),
        "hhi": round(sum((amount / total) ** 2 for amount in earnings), 5) if total else 0.0,
        "top3_share": _share(sum(earnings[:3]), total),
        "earned_by_model": dict(sorted(models.items())),
    }
