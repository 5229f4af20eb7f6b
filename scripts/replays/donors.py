"""A donor: one traced machine, what it offers, what of it is free, and whether it is there at the moment."""

from __future__ import annotations

from hashlib import sha256

from node.donor.machine import Machine, Share
from node.wallet.job_spec import JOB_CLASS_DEFAULT
from protocol.charter import Charter
from protocol.limits import INTEGER_MAX
from protocol.metering import REFUND_TABLE_VERSION, WALL_SECONDS_MAX, compute_charge
from protocol.quotes import Offer, OfferedGpu, Quote, QuoteRequest, check_request_fits, compute_rate, decode_offer
from scripts.replays.assumptions import Assumptions
from scripts.replays.devices import find_device
from scripts.replays.ledger import Party
from scripts.replays.trace import TracedMachine

DISK_BYTES = 10**13
"""The trace tells of no disks: they never stand in the way."""
QUOTE_VALID_SECONDS = 300


class Donor:
    """Invariant: what runs on the machine is within what it lends (`node/donor/machine.py`)."""

    def __init__(self, charter: Charter, traced: TracedMachine, party: Party, sponsor: bytes) -> None:
        device = find_device(traced.model)
        self.traced = traced
        self.party = party
        lent = Share(traced.cores, traced.memory_bytes, DISK_BYTES, traced.gpus)
        self.machine = Machine(lambda: lent, lambda: False)
        self.is_here = True
        self._charter = charter
        self._here_since_ms = 0
        self._present_ms = 0
        offer = Offer(
            donor_key=party.public_key,
            seal_key=sha256(b"seal" + party.public_key).digest(),
            sponsor=sponsor,
            node_url="https://node.example.org",
            machine=traced.name,
            cores=traced.cores,
            memory_bytes=traced.memory_bytes,
            disk_bytes=DISK_BYTES,
            is_disk_in_memory=0,
            gpus=(OfferedGpu(device.name, device.memory_gb),) * traced.gpus,
            weight=device.weight,
            runtimes=(),
            job_classes=(JOB_CLASS_DEFAULT,),
            hosts=(),
            wall_seconds_max=WALL_SECONDS_MAX,
            valid_until=INTEGER_MAX,
            signature=b"",
        ).sign(charter.federation, party.key)
        self.offer = decode_offer(charter, offer.encode())

    def leave(self, now_ms: int) -> None:
        """The machine is not lent from now on."""
        self.is_here = False
        self._present_ms += now_ms - self._here_since_ms

    def come_back(self, now_ms: int) -> None:
        """It is lent again."""
        self.is_here = True
        self._here_since_ms = now_ms

    def compute_present_ms(self, until_ms: int) -> int:
        """How long it was lent."""
        return self._present_ms + (until_ms - self._here_since_ms if self.is_here else 0)

    def quote(self, request: QuoteRequest, assumptions: Assumptions, now_seconds: int) -> Quote:
        """The answer to a request, as a donor's agent gives it. Raises: Rejected."""
        check_request_fits(self.offer, request)
        rate = compute_rate(self.offer, request)
        return Quote(
            donor_key=self.offer.donor_key,
            request=request.compute_id(self._charter.federation),
            sponsor=self.offer.sponsor,
            rate=rate,
            wall_seconds=request.wall_seconds,
            tick_seconds=assumptions.tick_seconds,
            amount_max=compute_charge(request.wall_seconds * 1000, rate),
            grace_seconds=assumptions.grace_seconds,
            refund_table=REFUND_TABLE_VERSION,
            charter_version=self._charter.version,
            valid_until=now_seconds + QUOTE_VALID_SECONDS,
            signature=b"",
        ).sign(self._charter.federation, self.party.key)
