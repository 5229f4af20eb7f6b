"""Starting the agent of this machine from its files, and stopping it in good order on a signal."""

from __future__ import annotations

import logging
import signal
from pathlib import Path

import trio
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from node.donor.agent import Agent
from node.donor.enrolling import load_donor_key, load_seal_seed
from node.donor.executors.choosing import make_executor
from node.donor.executors.devices import DevicePool
from node.donor.gpus import GpuDriver
from node.donor.runtimes import load_runtimes
from node.donor.settings import DonorHome, Score, Settings
from node.errors import UserError

log = logging.getLogger(__name__)

STOP_SECONDS = 20.0
"""How long a signal leaves for ending and settling jobs. What is not settled then is at the next start."""


async def serve(home: DonorHome, passphrase_file: Path | None) -> None:
    """Run the agent until it has finished, or a signal came. Raises: UserError when something is missing."""
    from node.client import NodeClient

    settings, score = home.load_settings(), home.load_score()
    if score is None:
        raise UserError("this machine was never measured: run `allmende donor selftest` first")
    runtimes = load_runtimes(home.runtimes)
    if missing := sorted(set(settings.runtimes) - set(runtimes)):
        raise UserError(f"runtimes that donor.toml offers are not built ({', '.join(missing)}): run the self-test")
    key = load_donor_key(home, passphrase_file)
    link = NodeClient(settings.node_url)
    lent = find_lent_gpus(settings, score)
    devices = DevicePool(GpuDriver.open() if lent else None, lent)
    executor = make_executor(settings.executor, home.sandbox, settings.slurm, devices)
    agent = Agent(
        home,
        settings,
        score,
        home.load_charter().charter,
        Ed25519PrivateKey.from_private_bytes(key.seed),
        load_seal_seed(home),
        link,
        executor,
        runtimes,
        devices=devices,
    )
    log.info("donor %s, node %s", agent.address, settings.node_url)
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_stop_on_signal, agent, nursery.cancel_scope)
            await agent.run()
            nursery.cancel_scope.cancel()
    finally:
        executor.close()
        link.close()


def find_lent_gpus(settings: Settings, score: Score) -> list[str]:
    """UUIDs of the cards to lend: those of the settings that passed the self-test.

    Raises: UserError when others were measured: a card that never was has no weight, and one that is not lent any
    more may have set the machine's.
    """
    if set(settings.gpus) != {gpu.uuid for gpu in score.gpus}:
        raise UserError("donor.toml lends other GPUs than were measured: run `allmende donor selftest`")
    return [gpu.uuid for gpu in score.sound_gpus]


async def _stop_on_signal(agent: Agent, scope: trio.CancelScope) -> None:
    """The first signal takes the machine back and settles; a second one, or too long a wait, just ends."""
    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        async for _ in signals:
            break
        log.info("stopping: jobs are ended and settled; once more to stop at once")
        agent.evict_all()
        agent.home.write_wish("finish")
        with trio.move_on_after(STOP_SECONDS):
            async for _ in signals:
                break
        scope.cancel()
