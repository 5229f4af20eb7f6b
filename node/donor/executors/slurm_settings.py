"""How a donor's agent reaches a Slurm cluster: the table `[slurm]` of donor.toml."""

from __future__ import annotations

from pathlib import Path

import msgspec

from node.errors import UserError


class SlurmSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the table says.

    The agent runs as the user whose jobs these will be, best an account of the cluster made for it. Under a superuser's
    agent, each job changes to a user id of its own.
    """

    shared_directory: str
    """Seen under this very path by the agent and by every node; the jobs' files lie in it, so it bounds their disk."""
    partition: str = ""
    account: str = ""
    quality_of_service: str = ""
    gres: str = "gpu"
    """What Slurm calls a GPU: `gpu`, or `gpu:a100` for those of one type."""
    gpu_device_prefix: str = "/dev/nvidia"
    """Before the number of a GPU, this is its device file on a node."""
    prefix: list[str] = []
    """Stands before every command of Slurm, such as `["nsenter", "--net=/run/netns/cluster"]`; usually nothing."""
    poll_seconds: float = 2.0
    """Time between two looks at the queue, for all jobs together."""

    def check(self) -> None:
        """Raise `UserError` when a value makes no sense."""
        if not Path(self.shared_directory).is_absolute():
            raise UserError("shared_directory under [slurm] in donor.toml must be an absolute path")
        if self.poll_seconds <= 0:
            raise UserError("poll_seconds under [slurm] in donor.toml must be above 0")
