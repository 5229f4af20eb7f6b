"""Which executor runs this donor's jobs, by its settings."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from node.donor.executors.devices import DevicePool
    from node.donor.executors.sandbox import Sandbox
    from node.donor.executors.slurm import SlurmExecutor
    from node.donor.executors.slurm_settings import SlurmSettings


def make_executor(
    executor: str, sandbox_directory: Path, slurm: SlurmSettings | None, devices: DevicePool | None = None
) -> Sandbox | SlurmExecutor:
    """The executor of this name; end it with `close`. Only what the chosen one needs is imported.

    `devices` are the GPUs that a sandbox gives to jobs; a cluster gives its own.
    """
    if executor == "slurm":
        from node.donor.executors.slurm import SlurmExecutor

        assert slurm is not None, "the settings were checked"
        return SlurmExecutor(slurm)
    assert executor == "sandbox"
    from node.donor.executors.sandbox import Sandbox

    return Sandbox(sandbox_directory, devices=devices)
