"""A day of a federation of donors: jobs arrive, are matched, held, metered and settled; donors come and go.

Finality and staging take no time here: both are seconds, and jobs take minutes to days. A job lasts as long on every
machine as in the trace, which does not say how it would run elsewhere. When the hours are over, what runs still is
cancelled, and time goes on until the last hold has ended, so that the books can be checked to the millicredit.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from protocol.metering import CHARGED_STATES, JobState
from protocol.quotes import QuoteRequest, check_hold, check_quote
from scripts.replays.assumptions import Assumptions
from scripts.replays.donors import Donor
from scripts.replays.fates import Absence, draw_absences, draw_fate
from scripts.replays.jobs import Job, Run, make_demand
from scripts.replays.ledger import Books, Party
from scripts.replays.matching import rank_offers
from scripts.replays.metering import Contract, read_meter
from scripts.replays.timeline import Timeline
from scripts.replays.trace import TracedJob, TracedMachine
from scripts.replays.waiting import WaitingRoom

TICKS_UNTIL_NOTICED = 2
"""After so many tick lengths without a tick a wallet takes its donor for lost."""


class Replay:
    """One replay; `run` once, then read `jobs`, `donors` and `books`."""

    def __init__(
        self,
        jobs: Sequence[TracedJob],
        machines: Sequence[TracedMachine],
        *,
        hours: float = 24.0,
        start_seconds: int = 1_700_000_000,
        member_count: int = 4,
        seed: int = 1,
        assumptions: Assumptions | None = None,
    ) -> None:
        self.assumptions = assumptions or Assumptions()
        self.end_ms = round(hours * 3_600_000)
        self.books = Books(member_count, start_seconds)
        self._start_seconds = start_seconds
        self._timeline = Timeline()
        self._waiting = WaitingRoom()
        self._ranked: dict[QuoteRequest, list[Donor]] = {}
        institutions = sorted({job.institution for job in jobs})
        self.people = {
            name: [
                self.books.make_party("person", f"{name} {number}")
                for number in range(self.assumptions.people_per_institution)
            ]
            for name in institutions
        }
        parties = [self.books.make_party("donor", machine.name) for machine in machines]
        self.books.open_accounts(self.people, parties)
        self.donors = [self._open_donor(machine, party, seed) for machine, party in zip(machines, parties, strict=True)]
        self._donor_of = {donor.offer.donor_key: donor for donor in self.donors}
        self.jobs = [self._open_job(number, job, seed) for number, job in enumerate(jobs)]

    def run(self) -> None:
        """All the hours, and what is left to settle after them."""
        self._timeline.at(self.end_ms, self._close)
        self._timeline.run()
        self.books.check()

    @property
    def _is_closed(self) -> bool:
        """True once the hours are over: no job starts any more."""
        return self._timeline.now_ms >= self.end_ms

    # -- what will come -----------------------------------------------------------------------------------------

    def _open_donor(self, machine: TracedMachine, party: Party, seed: int) -> Donor:
        donor = Donor(self.books.charter, machine, party, self.books.sponsors[party.account])
        for absence in draw_absences(machine.name, self.end_ms, self.assumptions, seed):
            self._timeline.at(absence.starts_ms, partial(self._lose, donor, absence))
        return donor

    def _open_job(self, number: int, traced: TracedJob, seed: int) -> Job:
        assumed = self.assumptions
        fate = draw_fate(traced, number, assumed, seed)
        payer = self.people[traced.institution][fate.person]
        job = Job(number, traced, fate, payer, make_demand(traced.gpus, assumed))
        self._timeline.at(traced.submitted_ms, partial(self._submit, job))
        return job

    # -- placing ------------------------------------------------------------------------------------------------

    def _submit(self, job: Job) -> None:
        """The job asks for a machine; when none is free it waits."""
        if self._is_closed:
            return
        ranked = self._rank(job)
        if not ranked:
            job.is_unplaceable = True
            return
        if not self._waiting.is_waited_for(job.demand):
            for donor in ranked:
                if self._is_free(donor, job):
                    self._start(job, donor)
                    return
        self._waiting.add(job)

    def _rank(self, job: Job) -> list[Donor]:
        """All donors that could run it. They ask the same price per second all day, so the order is found once."""
        if job.demand not in self._ranked:
            offers = [donor.offer for donor in self.donors]
            best_first = rank_offers(offers, job.demand)
            self._ranked[job.demand] = [self._donor_of[offer.donor_key] for offer in best_first]
        return self._ranked[job.demand]

    def _is_free(self, donor: Donor, job: Job) -> bool:
        return donor.is_here and donor.machine.has_room(job.demand)

    def _fill(self, donor: Donor) -> None:
        """Something is free on this machine: who waits gets it."""
        while not self._is_closed:
            job = self._waiting.take(lambda job: self._is_free(donor, job) and donor in self._rank(job))
            if job is None:
                return
            self._start(job, donor)

    def _start(self, job: Job, donor: Donor) -> None:
        """Request, quote, hold; then it runs until its own end, its wall time or the donor's fault."""
        federation, now_ms = self.books.federation, self._timeline.now_ms
        request, meter_key = job.make_request(federation)
        quote = donor.quote(request, self.assumptions, self._start_seconds + now_ms // 1000)
        check_quote(federation, quote, request, donor.offer)
        self._set_clock()
        hold = self.books.put_aside(job.payer, donor.party.account, quote, request)
        check_hold(federation, hold, quote, request)
        assert donor.machine.take(hold.id.hex(), request), "a donor quotes only what it has room for"
        run = Run(donor, request, quote, hold, meter_key, now_ms)
        job.runs.append(run)
        wall_ms = job.fate.wall_seconds * 1000
        state = job.fate.end if job.left_ms <= wall_ms else JobState.WALLTIME
        self._timeline.after(min(job.left_ms, wall_ms), partial(self._end, job, run, state))

    # -- ending -------------------------------------------------------------------------------------------------

    def _end(self, job: Job, run: Run, state: JobState, absence: Absence | None = None) -> None:
        """The run is over, unless it was before: read the meter, free the machine, settle, try again if need be."""
        if run.is_over:
            return
        run.state, run.ended_ms = state, self._timeline.now_ms
        contract = Contract(
            self.books.charter, run.hold.id, run.quote, run.donor.party.key, run.meter_key, run.request.meter_key
        )
        run.reading = read_meter(contract, state, run.elapsed_ms, job.fate.has_checkpoints)
        run.donor.machine.give_back(run.hold.id.hex())
        if state in CHARGED_STATES:
            self._settle(run)
            self._fill(run.donor)
            return
        job.saved_ms += run.reading.saved_ms
        noticed_ms = 0
        if state == JobState.EVICTED:
            self._settle(run)
        else:
            noticed_ms = TICKS_UNTIL_NOTICED * run.quote.tick_seconds * 1000
            assert absence is not None
            self._settle_late(job, run, absence, noticed_ms)
        if len(job.runs) >= self.assumptions.runs_max:
            job.is_given_up = True
        else:
            self._timeline.after(noticed_ms, partial(self._submit, job))

    def _settle(self, run: Run) -> None:
        assert run.reading is not None
        self._set_clock()
        self.books.settle(run.donor.party, run.reading.voucher, run.reading.receipt)
        run.charged = run.reading.amount
        run.records += 1

    def _settle_late(self, job: Job, run: Run, absence: Absence, noticed_ms: int) -> None:
        """A donor that failed settles when it is back; from one that never is the payer takes everything back."""
        if absence.away_ms:
            self._timeline.after(absence.away_ms, partial(self._settle, run))
        else:
            self._timeline.after(noticed_ms, partial(self._ask_back, job, run))

    def _ask_back(self, job: Job, run: Run) -> None:
        self._set_clock()
        request = self.books.ask_back(job.payer, run.hold)

        def reclaim() -> None:
            self._set_clock()
            self.books.reclaim(job.payer, run.hold, request)
            run.is_reclaimed = True

        run.records += 2
        self._timeline.after((run.quote.grace_seconds + 1) * 1000, reclaim)

    # -- donors -------------------------------------------------------------------------------------------------

    def _lose(self, donor: Donor, absence: Absence) -> None:
        """The donor goes away, and every job on its machine ends."""
        donor.leave(self._timeline.now_ms)
        for job, run in self._list_running(donor):
            self._end(job, run, absence.state, absence)
        if absence.away_ms:
            self._timeline.after(absence.away_ms, partial(self._come_back, donor))

    def _come_back(self, donor: Donor) -> None:
        if not self._is_closed:
            donor.come_back(self._timeline.now_ms)
            self._fill(donor)

    def _list_running(self, donor: Donor | None = None) -> list[tuple[Job, Run]]:
        return [
            (job, run)
            for job in self.jobs
            for run in job.runs[-1:]
            if not run.is_over and (donor is None or run.donor is donor)
        ]

    def _close(self) -> None:
        """The hours are over."""
        for job, run in self._list_running():
            run.is_cut = True
            self._end(job, run, JobState.CANCELLED)

    def _set_clock(self) -> None:
        """The members' clocks show what time it is."""
        self.books.now_seconds = self._start_seconds + self._timeline.now_ms / 1000
