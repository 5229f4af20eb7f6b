"""A job on a GPU, both sides: offered with its memory, priced by the GPU, its energy in the receipt."""

from __future__ import annotations

import trio

from node.donor.executors.devices import DevicePool
from node.donor.settings import GpuScore, Score
from protocol.metering import JobState
from protocol.quotes import OfferedGpu, decode_offer
from tests.node.donor.fake_gpus import A100_BYTES
from tests.node.donor.test_agent import payer, run_in_thread
from tests.node.donor.test_devices import device_files, driver

__all__ = ["device_files", "driver", "payer"]

WEIGHT = 900
SOUND, FAULTY = (
    GpuScore(f"GPU-{number}", "A100-SXM4-80GB", A100_BYTES, WEIGHT, 1.0, 1.0, 80.0, fault)
    for number, fault in enumerate(("", "it computes wrongly"))
)
SCORE = Score(WEIGHT, 1.0, 1.0, 80.0, 0, (SOUND, FAULTY))


def write_gpu_job(write_job, run):
    path = write_job(run)
    path.write_text(path.read_text().replace("resources: {", "resources: {accelerators: A100, "))
    return path


async def use_energy(fake_gpus):
    """The card takes some joules now and then."""
    energy = 0
    while True:
        await trio.sleep(0.1)
        energy += 3000
        fake_gpus.change(0, energy=energy, utilisation=100)


async def test_a_job_on_a_gpu_is_priced_by_it_and_its_receipt_tells_the_energy(
    fake_gpus, driver, device_files, fake_node, payer, write_job, start_agent
):
    path = write_gpu_job(write_job, "ls /dev | grep nvidia[0-9]; sleep 2.5")
    pool = DevicePool(driver, ["GPU-0"], devices=device_files)
    async with start_agent(score=SCORE, devices=pool), trio.open_nursery() as nursery:
        nursery.start_soon(use_energy, fake_gpus)
        await run_in_thread(payer.run, path)
        nursery.cancel_scope.cancel()
    (answer,) = fake_node.get_offers()
    assert decode_offer(fake_node.charter, answer.encoded).gpus == (OfferedGpu("A100-SXM4-80GB", 85),)
    receipt = payer.job.decode_receipt(payer.wallet)
    assert (receipt.state, payer.log) == (JobState.DONE, b"nvidia0\n")
    assert receipt.amount == -(-receipt.wall_ms * WEIGHT * 240 // 240_000) == payer.job.paid
    assert receipt.energy_joules_plus_one > 3
    assert pool.count_free() == 1


async def test_a_card_that_failed_meanwhile_costs_the_payer_nothing(
    fake_gpus, driver, device_files, fake_node, payer, write_job, start_agent
):
    path = write_gpu_job(write_job, "true")
    async with start_agent(score=SCORE, devices=DevicePool(driver, ["GPU-0"], devices=device_files)):
        await run_in_thread(payer.ask, path)
        fake_gpus.change(0, xid=79)
        await run_in_thread(payer.pay)
        await run_in_thread(payer.follow)
    receipt = payer.job.decode_receipt(payer.wallet)
    assert (receipt.state, receipt.amount) == (JobState.DONOR_FAILED, 0)
