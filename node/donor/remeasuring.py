"""The self-test again, now and then while no job runs: what the machine was worth once it need not be for ever.

It comes at random moments, so that nobody can dress the machine up for it. What was measured last is what is offered;
a machine that fails is not offered until it passes again (spec 12.11).
"""

from __future__ import annotations

import logging
import random
from collections.abc import Mapping

import trio

from node.donor.calibrate import repeat_selftest, should_repeat
from node.donor.executors.devices import DevicePool
from node.donor.offering import Offering
from node.donor.runtimes import Runtime
from node.donor.settings import DonorHome
from node.donor.workshop import Workshop
from node.errors import UserError

log = logging.getLogger(__name__)

LOOK_SECONDS = 60.0


class Remeasuring:
    """Measures when the machine is free, and keeps jobs from starting meanwhile."""

    def __init__(
        self,
        home: DonorHome,
        shop: Workshop,
        offering: Offering,
        devices: DevicePool,
        runtimes: Mapping[str, Runtime],
    ) -> None:
        self._home = home
        self._shop = shop
        self._offering = offering
        self._devices = devices
        self._runtimes = runtimes

    async def watch(self) -> None:
        """Look every minute whether it is time, until cancelled."""
        while True:
            await trio.sleep(LOOK_SECONDS)
            shop, score = self._shop, self._offering.score
            is_free = shop.machine.is_idle and shop.verdict.is_lent and shop.wish == "run"
            if is_free and should_repeat(int(shop.now()), score.measured_at_seconds, random.random()):
                with shop.machine.closed():
                    await self._measure()

    async def _measure(self) -> None:
        shop = self._shop
        try:
            self._offering.score = await repeat_selftest(
                self._home,
                shop.settings,
                shop.executor,
                self._devices,
                self._runtimes,
                shop.charter.fields.rates,
                int(shop.now()),
            )
            self._offering.obstacle = ""
            log.info("measured again: weight %d", self._offering.score.weight)
        except UserError as error:
            self._offering.obstacle = f"the self-test failed: {error}"
            log.warning("%s: nothing is offered", self._offering.obstacle)
