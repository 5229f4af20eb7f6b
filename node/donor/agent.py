"""The donor's agent: publishes what this machine lends, answers requests, and looks after each job to its end.

It opens no port: it asks its sponsor's node for messages, so it works behind any router. Jobs run side by side as far
as the machine has room for them; the agent of a machine is alone with it, kept so by a lock. Once a second it looks
whose machine it is: its owner's word, and work, come before every job.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

import trio
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from node.addresses import Kind, encode_address
from node.donor.executors.devices import DevicePool
from node.donor.executors.executor import Executor
from node.donor.job import JobRun
from node.donor.job_file import JobDocument, JobFile
from node.donor.machine import Machine, Share
from node.donor.offering import Offering
from node.donor.owner import Decision, Moment, decide, judge
from node.donor.owner_load import OwnerWatch
from node.donor.post import NodeLink, Post
from node.donor.quoting import Quoting
from node.donor.remeasuring import Remeasuring
from node.donor.runtimes import Runtime
from node.donor.settings import DonorHome, Score, Settings, SettingsWatch
from node.donor.workshop import Workshop
from node.errors import UserError
from node.known_charters import KnownCharters
from protocol.charter import Charter
from protocol.metering import JobState

log = logging.getLogger(__name__)

WATCH_SECONDS = 1.0


class Agent:
    """One donor's agent. Invariant: the jobs that run have room on the machine, all together."""

    def __init__(
        self,
        home: DonorHome,
        settings: Settings,
        score: Score,
        charter: Charter,
        key: Ed25519PrivateKey,
        seal_seed: bytes,
        link: NodeLink,
        executor: Executor,
        runtimes: dict[str, Runtime],
        *,
        devices: DevicePool | None = None,
        now: Callable[[], float] = time.time,
        poll_seconds: int = 20,
    ) -> None:
        self.home = home
        watch = SettingsWatch(home.settings_path, settings)
        self.shop = Workshop(
            KnownCharters(charter, home.amendments_path),
            key,
            seal_seed,
            watch,
            Post(link, poll_seconds),
            executor,
            Machine(lambda: _compute_lent(watch.settings, self._offering.score), lambda: executor.is_disk_in_memory),
            {runtimes[name].digest: runtimes[name] for name in settings.runtimes if name in runtimes},
            now,
            home.read_wish(),
        )
        self.address = encode_address(Kind.ACCOUNT, self.shop.account)
        self.jobs: dict[str, JobRun] = {}
        """Those that are looked after, by conversation."""
        self._offering = Offering(self.shop, score)
        self._devices = devices or DevicePool(None)
        self._owner = OwnerWatch(self._devices)
        self._runtimes = runtimes
        self._ended_cpu_us: dict[str, int | None] = {}

    async def run(self) -> None:
        """Sweep, take up every unfinished job, then serve until told to finish."""
        await self.shop.executor.sweep()
        self._look_at_owner()
        async with trio.open_nursery() as nursery:

            def begin(document: JobDocument) -> None:
                self._take_up(JobFile.create(self.home.jobs, document), nursery)

            for job in JobFile.load_all(self.home.jobs):
                self._take_up(job, nursery)
            nursery.start_soon(self._offering.publish)
            nursery.start_soon(Quoting(self.home, self.shop, self._offering, self._devices, begin).serve)
            remeasuring = Remeasuring(self.home, self.shop, self._offering, self._devices, self._runtimes)
            nursery.start_soon(remeasuring.watch)
            await self._watch()
            nursery.cancel_scope.cancel()

    def evict_all(self) -> None:
        """The owner takes the machine back for good: jobs end, paid up to their last checkpoints."""
        for run in self.jobs.values():
            run.stop(JobState.EVICTED)

    # -- jobs ---------------------------------------------------------------------------------------------------

    def _take_up(self, job: JobFile, nursery: trio.Nursery) -> None:
        conversation = job.document.conversation
        self.shop.documents[conversation] = job.document
        if job.document.is_over:
            return
        run = JobRun(self.shop, job)
        if run.is_started and job.document.state != JobState.HELD:
            self.shop.machine.keep(conversation, run.request)
        self.jobs[conversation] = run
        self._apply_verdict(run)
        nursery.start_soon(self._look_after, run)

    async def _look_after(self, run: JobRun) -> None:
        """One job's failure must not take the others along; its file says what is left to do after a restart."""
        conversation = run.document.conversation
        try:
            await run.run()
        except Exception:
            log.exception("job %s: stopped by an error of ours", conversation[:8])
        finally:
            self.jobs.pop(conversation, None)
            self._ended_cpu_us[conversation] = run.read_cpu_us()
            if not run.document.hold:
                self.shop.documents.pop(conversation, None)

    # -- the owner ----------------------------------------------------------------------------------------------

    async def _watch(self) -> None:
        """Returns when the owner asked to finish and no job is under way."""
        while True:
            self._look_at_owner()
            for run in list(self.jobs.values()):
                self._apply_verdict(run)
            if self.shop.wish == "finish" and not any(run.document.hold for run in self.jobs.values()):
                return
            await trio.sleep(WATCH_SECONDS)

    def _look_at_owner(self) -> None:
        shop = self.shop
        try:
            if shop.settings_watch.read_change() is not None:
                log.info("what the owner prefers has changed")
        except UserError as error:
            log.warning("the preferences stay as they were: %s", error)
        wish = self.home.read_wish()
        if wish != shop.wish:
            log.info("the owner asks to %s", wish)
            shop.wish = wish
        used = {conversation: run.read_cpu_us() for conversation, run in self.jobs.items() if run.is_running}
        readings = self._owner.read(self._ended_cpu_us | used)
        self._ended_cpu_us = {}
        moment = Moment.at(shop.now(), time.monotonic())
        before, shop.verdict = shop.verdict, judge(shop.settings, wish, moment, readings, shop.verdict)
        if before.is_lent != shop.verdict.is_lent:
            log.info("the machine is %s", "lent again" if shop.verdict.is_lent else f"not lent: {shop.verdict.reason}")

    def _apply_verdict(self, run: JobRun) -> None:
        """Whose machine it is decides whether a job runs, waits or ends."""
        if not run.is_started:
            return
        match decide(self.shop.settings, self.shop.verdict, run.suspended_ms):
            case Decision.SUSPEND:
                run.suspend(self.shop.verdict.reason)
            case Decision.RESUME:
                run.resume()
            case Decision.EVICT:
                run.stop(JobState.EVICTED)


def _compute_lent(settings: Settings, score: Score) -> Share:
    return Share(settings.cores, settings.memory_bytes, settings.disk_bytes, len(score.sound_gpus))
