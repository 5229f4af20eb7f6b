"""Which machines can do a job, best first, by the rule that wallets choose by: the one place to change with it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from node.errors import UserError
from node.wallet.job_spec import JobSpec
from node.wallet.offers import price_offers
from protocol.conversation import Script
from protocol.quotes import Offer, QuoteRequest


def rank_offers(offers: Sequence[Offer], demand: QuoteRequest) -> list[Offer]:
    """The offers on which the job could run, the one first that its wallet would take; none when there is none.

    `demand` is a request without keys: what the price depends on.
    """
    spec = JobSpec(
        name="replayed",
        workdir=Path(),
        mounts=(),
        script=Script("", "true", ()),
        runtime=None,
        cores=demand.cores,
        memory_bytes=demand.memory_bytes,
        disk_bytes=demand.disk_bytes,
        gpus=demand.gpus,
        gpu_name="",
        wall_seconds=demand.wall_seconds,
        amount_max=None,
        program=None,
        job_class=demand.job_class,
    )
    try:
        return [priced.offer for priced in price_offers(list(offers), spec)]
    except UserError:
        return []
