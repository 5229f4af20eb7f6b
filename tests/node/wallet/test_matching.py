"""Which machine does a job: what must be there, and what counts among those that have it."""

from __future__ import annotations

import random
import time
from itertools import pairwise

import pytest

from node.wallet.matching import (
    UNKNOWN,
    DonorScore,
    GpuWish,
    JobNeeds,
    KnownOffer,
    Misfit,
    Preference,
    find_matches,
    is_gpu,
    match_offer,
)
from protocol.quotes import Offer, OfferedGpu, RuntimeName

A100 = "NVIDIA A100-SXM4-80GB"
BIG, SMALL = OfferedGpu(A100, 85), OfferedGpu("Tesla T4", 16)


def make_offer(number=1, **changes):
    offer = Offer(
        donor_key=bytes([number % 256, number // 256]) * 16,
        seal_key=bytes(32),
        sponsor=bytes(32),
        node_url="http://node",
        machine=f"machine-{number}",
        cores=16,
        memory_bytes=64 * 10**9,
        disk_bytes=10**11,
        is_disk_in_memory=0,
        gpus=(),
        weight=1000,
        runtimes=(RuntimeName("python-ml", b"d" * 32),),
        job_classes=("batch",),
        hosts=("pypi.org:443",),
        wall_seconds_max=86_400,
        valid_until=0,
        signature=b"",
    )
    return offer._replace(**changes)


def make_needs(**changes):
    fields = {
        "runtime": None,
        "cores": 4,
        "memory_bytes": 10**9,
        "disk_bytes": 10**9,
        "gpus": (),
        "gpu_memory_gb": 0,
        "is_online": False,
        "hosts": (),
        "wall_seconds": 3600,
        "amount_max": None,
        "program": None,
        "job_class": "batch",
    }
    return JobNeeds(**(fields | changes))


@pytest.mark.parametrize(
    ("needs", "offer", "told"),
    [
        ({"cores": 17}, {}, "16 cores"),
        ({"memory_bytes": 65 * 10**9}, {}, "memory"),
        ({"disk_bytes": 10**12}, {}, "disk"),
        ({"memory_bytes": 60 * 10**9, "disk_bytes": 10**10}, {"is_disk_in_memory": 1}, "memory"),
        ({"gpus": (GpuWish("A100", 1),)}, {}, "it has: none"),
        ({"gpus": (GpuWish("A100", 2),)}, {"gpus": (BIG,)}, "2 A100"),
        ({"gpus": (GpuWish("A100", 1),)}, {"gpus": (BIG, SMALL)}, "1 A100"),
        ({"gpus": (GpuWish("A10", 1),)}, {"gpus": (BIG,)}, "1 A10 "),
        ({"gpus": (GpuWish("GPU", 1),), "gpu_memory_gb": 86}, {"gpus": (BIG,)}, "86 GB"),
        ({"gpus": (GpuWish("GPU", 1),), "gpu_memory_gb": 17}, {"gpus": (SMALL,)}, "17 GB"),
        ({"is_online": True}, {"hosts": ()}, "reach"),
        ({"is_online": True, "hosts": ("example.org:443",)}, {}, "example.org:443"),
        ({"wall_seconds": 86_401}, {}, "86400 s"),
        ({"job_class": "training"}, {}, "batch"),
        ({"runtime": "fortran"}, {}, "python-ml"),
    ],
)
def test_a_machine_that_lacks_what_is_needed_does_not_match_and_the_reason_is_told(needs, offer, told):
    with pytest.raises(Misfit, match=told):
        match_offer(make_needs(**needs), KnownOffer(make_offer(**offer)))


def test_the_first_wish_that_the_machine_can_grant_is_what_is_asked_for():
    needs = make_needs(gpus=(GpuWish("H100", 1), GpuWish("A100-80GB", 2)), gpu_memory_gb=80)
    match = match_offer(needs, KnownOffer(make_offer(gpus=(BIG, BIG))))
    assert (match.gpus, match.rate.gpus) == (2, 2)


def test_the_kind_of_a_gpu_is_words_of_its_name():
    assert is_gpu(A100, "a100")
    assert is_gpu(A100, "A100-80GB")
    assert is_gpu("NVIDIA H100 80 GB HBM3", "H100-80GB")
    assert is_gpu("anything", "GPU")
    assert not is_gpu(A100, "A10")
    assert not is_gpu(A100, "A100-40GB")


def list_machines(prefer, offers, own=frozenset({1})):
    matches, _ = find_matches(make_needs(), offers, own_members=own, prefer=prefer)
    return [match.offer.machine for match in matches]


def test_what_costs_least_until_it_is_done_comes_first_and_each_preference_has_its_own_order():
    offers = [
        KnownOffer(make_offer(1, machine="cheap", weight=500), 2, DonorScore(200, 40)),
        KnownOffer(make_offer(2, machine="sure", weight=1000), 2, DonorScore(990, 40)),
        KnownOffer(make_offer(3, machine="own", weight=1100), 1, DonorScore(900, 40)),
        KnownOffer(make_offer(4, machine="new", weight=1000), 3, UNKNOWN),
    ]
    assert list_machines(Preference.EXPECTED_COST, offers) == ["sure", "own", "new", "cheap"]
    assert list_machines(Preference.PRICE, offers) == ["cheap", "sure", "new", "own"]
    assert list_machines(Preference.RELIABILITY, offers) == ["sure", "own", "new", "cheap"]
    assert list_machines(Preference.LOCAL, offers) == ["own", "sure", "new", "cheap"]


def test_at_equal_expected_cost_ones_own_institution_comes_before_strangers():
    strangers = [KnownOffer(make_offer(number), 2) for number in range(1, 20)]
    own = KnownOffer(make_offer(20, machine="own"), 1)
    for prefer in Preference:
        assert list_machines(prefer, [*strangers, own])[0] == "own"


def test_the_order_of_equal_machines_is_the_payers_own():
    offers = [KnownOffer(make_offer(number)) for number in range(50)]
    orders = {payer: find_matches(make_needs(), offers, payer=payer)[0] for payer in (b"ada", b"bob")}
    assert orders[b"ada"] != orders[b"bob"]
    random.Random(7).shuffle(offers)
    assert find_matches(make_needs(), offers, payer=b"ada")[0] == orders[b"ada"]


def test_a_donor_that_never_finished_anything_comes_last_and_divides_by_no_zero():
    offers = [KnownOffer(make_offer(1, machine="never"), 1, DonorScore(0, 9)), KnownOffer(make_offer(2), 2)]
    assert list_machines(Preference.EXPECTED_COST, offers) == ["machine-2", "never"]


def test_expected_cost_falls_with_reliability_and_never_below_the_price():
    matches = [match_offer(make_needs(), KnownOffer(make_offer(), 1, DonorScore(score, 1))) for score in range(1, 1001)]
    assert all(one.expected_cost >= other.expected_cost >= other.amount_max for one, other in pairwise(matches))
    assert matches[-1].expected_cost == matches[-1].amount_max


def test_hundreds_of_offers_are_matched_in_a_moment():
    generator = random.Random(3)
    offers = [
        KnownOffer(make_offer(n, weight=generator.randint(1, 2000), cores=generator.randint(1, 64))) for n in range(500)
    ]
    start = time.process_time()
    matches, reasons = find_matches(make_needs(), offers)
    assert time.process_time() - start < 1.0
    assert len(matches) + len(reasons) == 500
