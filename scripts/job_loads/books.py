"""Whether the books agree when all jobs are over: what the wallets say, what the donors got, what the ledger holds."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

OVER = frozenset({"SETTLED", "RECLAIMED"})


def sum_up(
    jobs: Sequence[Mapping[str, Any]],
    earned: Mapping[str, int],
    balances: Mapping[str, tuple[int, int]],
    holds: Sequence[Mapping[str, Any]],
) -> tuple[dict[str, Any], list[str]]:
    """(figures, what does not hold).

    `jobs` are the customers' lines; `earned` is what each donor's account holds, by machine; `balances` has what each
    wallet had before and has now; `holds` are those of the ledger.
    """
    paid_to: defaultdict[str, int] = defaultdict(int)
    for job in jobs:
        paid_to[job["donor"]] += job["paid_millicredits"]
    paid = sum(paid_to.values())
    spent = sum(before - after for before, after in balances.values())
    twice = [hold for hold, count in Counter(job["hold"] for job in jobs).items() if count > 1]
    unknown = {job["hold"] for job in jobs} ^ {hold["hold"] for hold in holds}
    problems = [
        *(f"job {job['job']} is {job['state']}" for job in jobs if job["state"] not in OVER),
        *(f"job {job['job']}: {job['dispute']}" for job in jobs if job["dispute"]),
        *(
            f"{donor} got {earned.get(donor, 0)}, its jobs paid {paid_to[donor]}"
            for donor in paid_to.keys() | earned.keys()
            if earned.get(donor, 0) != paid_to[donor]
        ),
        *([f"the wallets have spent {spent}, their jobs paid {paid}"] if spent != paid else []),
        *(f"hold {hold[:16]} stands for two jobs" for hold in twice),
        *(f"hold {hold[:16]} is known to one side only" for hold in sorted(unknown)),
        *(f"hold {hold['hold'][:16]} is still open" for hold in holds if hold["is_open"]),
    ]  # fmt: skip
    ends = Counter(f"{job['wanted']} > {job['ended'] or job['state']}" for job in jobs)
    figures = {
        "jobs": len(jobs),
        "states": dict(Counter(job["state"] for job in jobs)),
        "ends": dict(sorted(ends.items())),
        "paid_millicredits": paid,
        "earned_millicredits": dict(earned),
        "jobs_by_donor": dict(Counter(job["donor"] for job in jobs)),
    }
    return figures, problems
