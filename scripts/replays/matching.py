"""Which machines can do a job, best first, by the rule that wallets choose by: the one place to change with it."""

from __future__ import annotations

from collections.abc import Sequence

from node.wallet.matching import GpuWish, JobNeeds, KnownOffer, find_matches
from protocol.quotes import Offer, QuoteRequest


def rank_offers(offers: Sequence[Offer], demand: QuoteRequest) -> list[Offer]:
    """The offers on which the job could run, the one first that its wallet would take; none when there is none.

    `demand` is a request without keys: what the price depends on.
    """
    needs = JobNeeds(
        runtime=None,
        cores=demand.cores,
        memory_bytes=demand.memory_bytes,
        disk_bytes=demand.disk_bytes,
        gpus=(GpuWish("GPU", demand.gpus),) if demand.gpus else (),
        gpu_memory_gb=0,
        is_online=False,
        hosts=(),
        wall_seconds=demand.wall_seconds,
        amount_max=None,
        program=None,
        job_class=demand.job_class,
    )
    matches, _ = find_matches(needs, map(KnownOffer, offers))
    return [match.offer for match in matches]
