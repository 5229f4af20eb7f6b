"""A replay's report on one screen."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from protocol.credits import format_credits

_WIDTHS = (16, 7, 11, 18, 18, 18, 9)


def list_lines(report: dict[str, Any]) -> Iterator[str]:
    """The lines of the screen; money in credits."""
    trace, machines, jobs = report["trace"], report["machines"], report["jobs"]
    yield f"{trace['hours']:g} h from {trace['start']}, seed {trace['seed']}, {trace['jobs']} and {trace['machines']}"
    yield ""
    yield (
        f"machines   {machines['donors']} donors, {machines['gpus']} GPUs; GPU-hours offered "
        f"{machines['gpu_hours_offered']:,.0f}, occupied {machines['gpu_hours_occupied']:,.0f} "
        f"({machines['occupied_share']:.1%}), paid {machines['gpu_hours_paid']:,.0f} ({machines['paid_share']:.1%})"
    )
    yield (
        f"jobs       {jobs['submitted']} submitted for {jobs['gpu_hours_asked']:,.0f} GPU-hours, "
        f"{jobs['gpu_hours_asked_in_time']:,.0f} of them within the time"
    )
    yield (
        f"           {jobs['ended']} ended, {jobs['running_at_the_end']} ran still, "
        f"{jobs['waiting_again_at_the_end']} waited for another run, {jobs['given_up']} given up"
    )
    yield (
        f"never run  {jobs['never_placed']} ({jobs['never_placed_share']:.1%}): {jobs['too_large']} larger than any "
        f"machine, {jobs['waiting_at_the_end']} waiting at the end"
    )
    waits = report["waiting_seconds"]
    yield "waiting    " + ", ".join(f"{name} {_format_seconds(seconds)}" for name, seconds in waits.items())
    yield ""
    yield from _list_ends(report)
    yield ""
    yield from _list_rest(report)


def _list_ends(report: dict[str, Any]) -> Iterator[str]:
    yield _align("end of a run", "runs", "GPU-hours", "held", "charged", "refunded", "")
    for state, row in [*report["ends"].items(), ("all", report["all_runs"])]:
        yield _align(
            state,
            row["runs"],
            f"{row['gpu_hours']:,.1f}",
            format_credits(row["held"]),
            format_credits(row["charged"]),
            format_credits(row["refunded"]),
            f"{row['refunded_share']:.1%}",
        )


def _list_rest(report: dict[str, Any]) -> Iterator[str]:
    retries, ledger, donors = report["retries"], report["ledger"], report["donors"]
    yield (
        f"retries    donors ended {retries['runs_ended_by_donors']} runs; {retries['jobs_run_again']} jobs ran again, "
        f"in {retries['runs_again']} more runs, at most {retries['runs_of_a_job_max']} for one job"
    )
    for name, row in report["lost_work"].items():
        yield (
            f"lost work  {name.replace('_', ' ')}: {row['gpu_hours_lost']:,.1f} of {row['gpu_hours_done']:,.1f} "
            f"GPU-hours in {row['runs']} runs ({row['lost_share']:.1%})"
        )
    kinds = ", ".join(f"{count} {kind.replace('_', '-')}" for kind, count in ledger["records_by_kind"].items())
    members = "1 member" if ledger["members"] == 1 else f"{ledger['members']} members"
    yield (
        f"ledger     {members}; {ledger['records_per_job']} records and {ledger['bytes_per_job']:,} bytes a job, at "
        f"most {ledger['records_of_a_job_max']} records; {ledger['jobs_within_aim_share']:.1%} of jobs took at most 4"
    )
    yield f"           {kinds}; {ledger['batches']} batches; {ledger['ticks']} ticks beside it"
    yield (
        f"donors     {donors['paid_donors']} earned {format_credits(donors['earned'])} credits; "
        f"HHI {donors['hhi']:.4f}, top three {donors['top3_share']:.1%}"
    )
    yield f"books      balanced to the millicredit; replayed in {report['wall_seconds']:.1f} s"


def _align(*cells: object) -> str:
    first, *rest = zip(cells, _WIDTHS, strict=True)
    return f"{first[0]!s:<{first[1]}}" + "".join(f"{cell!s:>{width}}" for cell, width in rest)


def _format_seconds(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02} min"
    return f"{minutes} min {rest:02} s" if minutes else f"{rest} s"
