"""What this machine offers to everybody, published again and again while it is lent."""

from __future__ import annotations

import logging

import trio

from node import api
from node.addresses import Kind, decode_address, encode_address
from node.donor.acceptance import is_use_policy_accepted
from node.donor.settings import Score
from node.donor.workshop import Workshop
from node.errors import UserError
from node.hosts import parse_host
from node.sealing import seal_public_key
from protocol.errors import InvalidInput, Rejected
from protocol.quotes import Offer, OfferedGpu, RuntimeName

log = logging.getLogger(__name__)

OFFER_SECONDS = 120
"""Time between two publications of the offer."""
OFFER_VALID_SECONDS = 600
UNSPONSORED_SECONDS = 3
"""Time between two looks whether a member vouches for this donor by now."""


class Offering:
    """The offer of one machine. There is none before a member vouches for the donor."""

    def __init__(self, shop: Workshop, score: Score) -> None:
        self.offer: Offer | None = None
        self.score = score
        """What the last self-test measured."""
        self.obstacle = ""
        """Why nothing is offered at the moment, beside what the owner and the members say."""
        self._shop = shop

    async def publish(self) -> None:
        """Publish it until cancelled, while the machine is lent."""
        while True:
            if self._shop.wish == "run" and self._shop.verdict.is_lent:
                try:
                    await self._shop.learn_charters()
                    await self._publish_once()
                except (UserError, Rejected, InvalidInput) as error:
                    log.warning("the offer was not published: %s", error)
            await trio.sleep(OFFER_SECONDS if self.offer is not None else UNSPONSORED_SECONDS)

    async def _publish_once(self) -> None:
        shop = self._shop
        address = encode_address(Kind.ACCOUNT, shop.account)
        if self.obstacle:
            self.offer = None
            return
        if not is_use_policy_accepted(shop.settings, shop.charters):
            self.offer = None
            log.warning("the federation has a new use policy: `allmende donor prefs --accept-use` lends under it")
            return
        account = await shop.post.insist(shop.post.link.get_account, address)
        sponsor = _find_sponsor(account)
        if sponsor is None:
            self.offer = None
            log.warning("no member vouches for %s yet: nothing is offered", address)
            return
        self.offer = self._build(sponsor)
        await shop.post.insist(shop.post.link.put_offer, self.offer.encode())

    def _build(self, sponsor: bytes) -> Offer:
        shop, settings = self._shop, self._shop.settings
        gpus = (OfferedGpu(gpu.name, gpu.memory_bytes // 10**9) for gpu in self.score.sound_gpus)
        return Offer(
            shop.key.public_key().public_bytes_raw(),
            seal_public_key(shop.seal_seed),
            sponsor,
            settings.node_url,
            settings.machine,
            settings.cores,
            settings.memory_bytes,
            settings.disk_bytes,
            int(shop.executor.is_disk_in_memory),
            tuple(gpus),
            self.score.weight,
            tuple(sorted(RuntimeName(runtime.name, digest) for digest, runtime in shop.runtimes.items())),
            tuple(sorted(set(settings.job_classes))),
            tuple(sorted({str(parse_host(host)) for host in settings.hosts})),
            settings.wall_seconds_max,
            int(shop.now()) + OFFER_VALID_SECONDS,
            b"",
        ).sign(shop.charter.federation, shop.key)


def _find_sponsor(account: api.Account) -> bytes | None:
    """The record by which a member vouches for the donor the longest from now on."""
    current = [entry for entry in account.sponsorships if entry.until_epoch >= account.epoch]
    if not current:
        return None
    return decode_address(Kind.RECORD, max(current, key=lambda entry: entry.until_epoch).record)
