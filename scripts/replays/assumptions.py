"""What the traces don't tell, and the replay therefore assumes: each figure with its source or its reason.

Everything here can be changed by an option of `scripts/replay`. What is not here either stands in the trace or is a
rule of the product.
"""

from __future__ import annotations

from dataclasses import dataclass

from node.errors import UserError
from protocol.limits import GRACE_SECONDS_MAX, GRACE_SECONDS_MIN, OUTPUTS_MAX
from protocol.quotes import TICK_SECONDS_MAX

_SHARES = ("failed_share", "cancelled_share", "underestimate_share", "checkpoint_share", "vanished_share")
_HOURS = ("failure_hours", "eviction_hours", "failed_away_hours", "evicted_away_hours")
_HOURS_MAX = 1e9


@dataclass(frozen=True, kw_only=True)
class Assumptions:
    """How jobs end, how donors go away, and what a job asks for beside its GPUs."""

    failed_share: float = 0.30
    """Of jobs that end by an error of their own. Published for GPU clusters: 16 to 43 % (AcmeTrace)."""
    cancelled_share: float = 0.14
    """Of jobs that their owner stops. Published: 6 to 22 % (AcmeTrace)."""
    underestimate_share: float = 0.03
    """Of jobs whose wall time is shorter than the job, which then ends by it. Assumed."""
    wall_factor_max: float = 4.0
    """All others ask for 1.1 to so many times what they need, evenly. Assumed: people guess high."""
    checkpoint_share: float = 0.5
    """Of jobs that keep a checkpoint, renewed at each tick. Assumed, so that both kinds can be compared."""
    failure_hours: float = 240.0
    """Mean time in which a machine fails once. Assumed: once in ten days, far worse than in a data centre."""
    eviction_hours: float = 48.0
    """Mean time in which an owner takes the machine back once. Assumed: every second day."""
    failed_away_hours: float = 1.0
    """Mean time until a failed machine is back. Assumed."""
    evicted_away_hours: float = 4.0
    """Mean time for which an owner keeps the machine. Assumed: half a working day."""
    vanished_share: float = 0.1
    """Of failures after which the donor never comes back, so its payers reclaim what they had put aside. Assumed."""
    runs_max: int = 4
    """After so many runs that ended by a donor's fault a job is given up. Assumed."""
    tick_seconds: int = 600
    """Time between two ticks, and two checkpoints. Donors' default is 30 s; ticks are no records, so nothing on the
    ledger depends on it, and a replay is twenty times faster."""
    grace_seconds: int = 3600
    """In which a donor settles: the default of `allmende donor setup`."""
    cores_per_gpu: int = 4
    memory_bytes_per_gpu: int = 24 * 10**9
    """Assumed: so much that every machine of the Alibaba trace can lend all its GPUs."""
    disk_bytes_per_gpu: int = 10**10
    people_per_institution: int = 8
    """Who pay for its jobs, each with an account."""

    def __post_init__(self) -> None:
        """Raises: UserError for what can't be."""
        bounds: dict[str, tuple[float, float]] = {
            **dict.fromkeys(_SHARES, (0, 1)),
            **dict.fromkeys(_HOURS, (0.001, _HOURS_MAX)),
            "wall_factor_max": (1.1, 100),
            "runs_max": (1, 1000),
            "tick_seconds": (1, TICK_SECONDS_MAX),
            "grace_seconds": (GRACE_SECONDS_MIN, GRACE_SECONDS_MAX),
            "cores_per_gpu": (1, 1000),
            "memory_bytes_per_gpu": (1, 10**13),
            "disk_bytes_per_gpu": (1, 10**12),
            "people_per_institution": (1, OUTPUTS_MAX),
        }
        for name, (least, most) in bounds.items():
            if not least <= getattr(self, name) <= most:
                raise UserError(f"--{name.replace('_', '-')} must lie between {least:g} and {most:g}")
        if self.failed_share + self.cancelled_share > 1:
            raise UserError("--failed-share and --cancelled-share are more than all jobs together")
