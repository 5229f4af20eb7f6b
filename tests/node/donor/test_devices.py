"""A job sees the GPUs that it was given and no other, and its books hold what they did for it."""

from __future__ import annotations

import os
import shutil
import stat
import tempfile
from pathlib import Path

import pytest
import trio

from node.donor.executors.devices import DeviceBooks, DevicePool
from node.donor.executors.executor import JobCommand, JobNotStarted, Limits
from node.donor.executors.sandbox import Sandbox, find_missing_tools
from node.donor.gpus import GpuDriver

NVIDIA_MAJOR = 195
CARDS = 4


@pytest.fixture
def driver(fake_gpus):
    fake_gpus.set_up(CARDS)
    opened = GpuDriver.open()
    assert opened is not None
    yield opened
    opened.close()


@pytest.fixture
def device_files():
    """Files as the driver makes them, where a job's user may reach them. No device stands behind any."""
    if os.geteuid() != 0:
        pytest.skip("only the superuser makes device files")
    directory = Path(tempfile.mkdtemp(prefix="devices-"))
    directory.chmod(0o755)
    for number, name in [(n, f"nvidia{n}") for n in range(CARDS)] + [(255, "nvidiactl"), (254, "nvidia-uvm")]:
        os.mknod(directory / name, stat.S_IFCHR | 0o666, os.makedev(NVIDIA_MAJOR, number))
        (directory / name).chmod(0o666)
    yield directory
    shutil.rmtree(directory)


@pytest.fixture
async def make_sandbox(tmp_path):
    if missing := find_missing_tools():
        pytest.fail(f"the sandbox can't be tested: run apt-get install {' '.join(missing)}")
    made = []

    async def make(pool):
        sandbox = Sandbox(tmp_path / "jobs", devices=pool)
        made.append(sandbox)
        await sandbox.sweep()
        return sandbox

    yield make
    for sandbox in made:
        sandbox.close()


def make_limits(gpus):
    return Limits(1, 1 << 28, 32, 1 << 23, 20, gpus)


def get_uuids(gpus):
    return [gpu.uuid for gpu in gpus]


def test_a_card_belongs_to_one_job_at_a_time(driver):
    pool = DevicePool(driver, ["GPU-0", "GPU-1", "GPU-2"])
    assert get_uuids(pool.reserve("one", 2)) == ["GPU-0", "GPU-1"]
    with pytest.raises(JobNotStarted, match=r"wants 2 GPUs, 1 of 3 are free \(GPU-0: another job has it"):
        pool.reserve("two", 2)
    assert get_uuids(pool.reserve("three", 1)) == ["GPU-2"]
    assert pool.count_free() == 0
    pool.release("one")
    assert get_uuids(pool.reserve("four", 1)) == ["GPU-0"]


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"uncorrected": 1}, "could not mend"),
        ({"xid": 79}, "Xid 79"),
        ({"mig": 1}, "MIG"),
        ({"pids": "1"}, "somebody else"),
        ({"fail.nvmlDeviceGetMemoryInfo": 15}, "off the bus"),
    ],
)
def test_a_card_that_is_not_sound_whole_and_free_is_given_to_nobody(fake_gpus, driver, values, told):
    pool = DevicePool(driver, ["GPU-0"])
    assert pool.count_free() == 1
    fake_gpus.change(0, **values)
    with pytest.raises(JobNotStarted, match=told):
        pool.reserve("job", 1)


def test_our_own_processes_on_a_card_are_not_foreign(fake_gpus, driver):
    fake_gpus.change(0, pids=f"{os.getpid()},1")
    assert DevicePool(driver, ["GPU-0"]).list_foreign_processes() == (1,)
    assert DevicePool(driver, ["GPU-0"], is_ours=lambda process: True).count_free() == 1


def test_what_is_not_lent_is_not_given(driver, fake_gpus):
    pool = DevicePool(driver, ["GPU-3"])
    fake_gpus.change(0, pids="1")
    assert pool.list_foreign_processes() == ()
    assert get_uuids(pool.reserve("one", 1)) == ["GPU-3"]
    assert DevicePool(None).reserve("job", 0) == ()
    with pytest.raises(JobNotStarted, match="0 of 0 are free"):
        DevicePool(None).reserve("job", 1)


async def test_a_job_sees_its_own_cards_and_no_other(driver, device_files, make_sandbox):
    sandbox = await make_sandbox(DevicePool(driver, ["GPU-1", "GPU-2", "GPU-3"], devices=device_files))
    script = "ls /dev | grep nvidia; echo $CUDA_VISIBLE_DEVICES $NVIDIA_VISIBLE_DEVICES; stat -c %t:%T /dev/nvidia2"
    other = await _run_beside(sandbox, JobCommand("sleep 60", 0, {}), JobCommand(script, 0, {}))
    seen = other.split()
    assert seen == ["nvidia-uvm", "nvidia2", "nvidia3", "nvidiactl", "GPU-2,GPU-3", "GPU-2,GPU-3", "c3:2"]


async def _run_beside(sandbox, lasting, command):
    """The log of a job with two cards that runs beside one with the first card."""
    async with trio.open_nursery() as nursery:
        await nursery.start(sandbox.run, "lasting", lasting, make_limits(1))
        outcome = await sandbox.run("beside", command, make_limits(2))
        nursery.cancel_scope.cancel()
    return outcome.log_path.read_text()


async def test_a_job_without_cards_sees_none(driver, device_files, make_sandbox):
    sandbox = await make_sandbox(DevicePool(driver, ["GPU-0"], devices=device_files))
    command = JobCommand('ls /dev | grep nvidia; echo "<$CUDA_VISIBLE_DEVICES>"', 0, {})
    outcome = await sandbox.run("job", command, make_limits(0))
    assert outcome.log_path.read_text() == "<>\n"
    assert (outcome.usage.gpu_busy_ms, outcome.usage.energy_joules) == (None, None)


async def test_a_job_can_neither_make_nor_open_the_file_of_another_card(driver, device_files, make_sandbox):
    sandbox = await make_sandbox(DevicePool(driver, ["GPU-0"], devices=device_files))
    tries = f"mknod /work/other c {NVIDIA_MAJOR} 1 || mknod /dev/nvidia1 c {NVIDIA_MAJOR} 1 || echo refused"
    outcome = await sandbox.run("job", JobCommand(tries, 0, {}), make_limits(1))
    assert "refused" in outcome.log_path.read_text()


@pytest.mark.parametrize(("name", "mode", "told"), [("nvidia-uvm", None, "missing"), ("nvidia0", 0o660, "everybody")])
async def test_device_files_that_jobs_cannot_use_stop_the_job_before_it_starts(
    driver, device_files, make_sandbox, name, mode, told
):
    pool = DevicePool(driver, ["GPU-0"], devices=device_files)
    sandbox = await make_sandbox(pool)
    if mode is None:
        (device_files / name).unlink()
    else:
        (device_files / name).chmod(mode)
    with pytest.raises(JobNotStarted, match=told):
        await sandbox.run("job", JobCommand("true", 0, {}), make_limits(1))
    assert pool.count_free() == 1


async def test_the_usage_of_a_job_holds_the_energy_of_its_cards(fake_gpus, driver, device_files, make_sandbox):
    fake_gpus.change(0, energy=1_000_000, utilisation=100)
    fake_gpus.change(1, energy=5_000_000, utilisation=100)
    sandbox = await make_sandbox(DevicePool(driver, ["GPU-0", "GPU-1"], devices=device_files))
    async with trio.open_nursery() as nursery:
        handle = await nursery.start(sandbox.run, "job", JobCommand("sleep 60", 0, {}), make_limits(2))
        with trio.fail_after(20):
            while not handle.usage().gpu_busy_ms:
                await trio.sleep(0.05)
        fake_gpus.change(0, energy=1_040_000)
        fake_gpus.change(1, energy=5_002_000)
        handle.stop()
    usage = handle.usage()
    assert usage.energy_joules == 42
    assert 0 < usage.gpu_busy_ms <= 2 * usage.wall_ms + 100


async def test_what_the_cards_take_while_their_job_stands_still_is_not_in_its_usage(
    fake_gpus, driver, device_files, make_sandbox
):
    fake_gpus.change(0, energy=0, utilisation=100)
    sandbox = await make_sandbox(DevicePool(driver, ["GPU-0"], devices=device_files))
    async with trio.open_nursery() as nursery:
        handle = await nursery.start(sandbox.run, "job", JobCommand("sleep 60", 0, {}), make_limits(1))
        with trio.fail_after(20):
            while not handle.usage().gpu_busy_ms:
                await trio.sleep(0.05)
        handle.suspend()
        fake_gpus.change(0, energy=50_000)
        handle.resume()
        fake_gpus.change(0, energy=52_000)
        handle.stop()
    assert handle.usage().energy_joules == 2


class Clock:
    seconds = 0.0

    def __call__(self):
        return self.seconds


def test_what_cards_do_while_the_job_is_suspended_is_not_its_own(fake_gpus, driver):
    clock = Clock()
    books = DeviceBooks(driver, ["GPU-0", "GPU-1"], clock)
    fake_gpus.change(0, energy=7_000, utilisation=50)
    books.resume()
    for seconds, energy, step in ((2, 9_000, books.suspend), (5, 50_000, books.sample), (6, 60_000, books.resume)):
        clock.seconds = seconds
        fake_gpus.change(0, energy=energy)
        step()
    clock.seconds = 10
    fake_gpus.change(0, energy=61_500, utilisation=100)
    books.sample()
    assert (books.gpu_busy_ms, books.energy_joules) == (1000 + 4000, 3)


@pytest.mark.parametrize("energy", [None, 5])
def test_energy_that_one_card_does_not_tell_is_not_guessed(fake_gpus, driver, energy):
    fake_gpus.change(0, energy=10)
    books = DeviceBooks(driver, ["GPU-0", "GPU-1"])
    books.resume()
    fake_gpus.change(0, energy=energy)
    books.sample()
    fake_gpus.change(0, energy=20_000)
    books.sample()
    assert books.energy_joules is None
    assert books.gpu_busy_ms is not None
