"""Cards are found and judged through the driver's library, whatever it leaves unsaid."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from node.donor.gpus import Activity, Gpu, GpuDriver, Health, is_descendant, survey_gpus
from tests.node.donor.fake_gpus import A100_BYTES

SOUND = Health(35, 0, 0, 0, (), ())


@pytest.fixture
def driver(fake_gpus):
    fake_gpus.set_up(2)
    opened = GpuDriver.open()
    assert opened is not None
    yield opened
    opened.close()


def test_cards_are_described_as_the_driver_knows_them(fake_gpus, driver):
    fake_gpus.change(0, minor=3, used=2**30, mig=None)
    assert driver.list_gpus() == (
        Gpu("A100-SXM4-80GB", "GPU-1", 1, A100_BYTES, 0, False),
        Gpu("A100-SXM4-80GB", "GPU-0", 3, A100_BYTES, 2**30, False),
    )
    assert tuple(found.gpu for found in survey_gpus()) == driver.list_gpus()


def test_a_machine_without_driver_has_no_gpus(fake_gpus):
    assert survey_gpus() == ()
    fake_gpus.set_up(1)
    fake_gpus.fail("nvmlInitWithFlags", 18)  # library and driver of different versions
    assert survey_gpus() == ()


def test_a_machine_without_the_library_has_no_gpus(tmp_path):
    (tmp_path / "libnvidia-ml.so.1").write_text("no library at all")
    program = "from node.donor.gpus import survey_gpus; assert survey_gpus() == ()"
    environment = {**os.environ, "LD_LIBRARY_PATH": str(tmp_path)}
    subprocess.run([sys.executable, "-c", program], env=environment, check=True)


def test_the_library_is_loaded_only_when_somebody_asks():
    program = "import sys, node.donor.gpus; assert 'pynvml' not in sys.modules"
    subprocess.run([sys.executable, "-c", program], check=True)


def test_a_partitioned_card_is_told_apart(fake_gpus, driver):
    fake_gpus.change(1, mig=1)
    assert [gpu.is_partitioned for gpu in driver.list_gpus()] == [False, True]


def test_a_sound_card_has_no_faults(driver):
    assert driver.read_health("GPU-0") == SOUND


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"uncorrected": 2}, "2 memory errors"),
        ({"failed": 1}, "could not replace"),
        ({"pending": 1}, "reset"),
        ({"remapped": None, "retiring": 1}, "reset"),
        ({"xid": 79}, "Xid 79"),
    ],
)
def test_each_sign_of_damage_is_a_fault_of_this_card_alone(fake_gpus, driver, values, told):
    fake_gpus.change(0, **values)
    (fault,) = driver.read_health("GPU-0").faults
    assert told in fault
    assert driver.read_health("GPU-1") == SOUND


def test_a_critical_error_is_remembered_and_a_programs_mistake_is_none(fake_gpus, driver):
    fake_gpus.change(0, xid=31)
    assert driver.read_health("GPU-0").faults == ()
    fake_gpus.change(0, xid=48)
    assert driver.read_health("GPU-0").faults == driver.read_health("GPU-0").faults != ()


def test_errors_that_the_card_mended_and_slowdowns_are_no_faults(fake_gpus, driver):
    fake_gpus.change(0, corrected=7, remapped=1, temperature=88, throttle=0x1 | 0x4 | 0x40)
    assert driver.read_health("GPU-0") == Health(88, 0, 7, 1, ("power limit", "heat (hardware)"), ())


@pytest.mark.parametrize(("code", "told"), [(15, "off the bus"), (999, "does not answer")])
def test_a_card_that_is_lost_is_a_fault_and_no_crash(fake_gpus, driver, code, told):
    fake_gpus.fail("nvmlDeviceGetMemoryInfo", code, number=0)
    assert [gpu.uuid for gpu in driver.list_gpus()] == ["GPU-1"]
    assert told in driver.read_health("GPU-0").faults[0]
    assert driver.read_health("GPU-7").faults == ("it is not there",)


def test_what_a_card_does_not_say_is_none(fake_gpus, driver):
    assert driver.read_activity("GPU-0") == Activity(0, 0)
    fake_gpus.change(0, utilisation=80, energy=None, temperature=None, uncorrected=None, corrected=None)
    assert driver.read_activity("GPU-0") == Activity(80, None)
    assert driver.read_health("GPU-0") == Health(None, None, None, 0, (), ())
    for call in ("nvmlDeviceGetUtilizationRates", "nvmlEventSetWait_v2", "nvmlDeviceGetRemappedRows"):
        fake_gpus.fail(call, 13)  # a library that is older than the call
    assert driver.read_activity("GPU-0").utilisation_percent is None
    assert driver.read_health("GPU-0") == Health(None, None, None, None, (), ())


def test_processes_of_others_are_told_from_ours(fake_gpus, driver):
    fake_gpus.change(0, pids="12,13,14")
    assert driver.find_processes("GPU-0") == {12, 13, 14}
    found = driver.survey(driver.list_gpus()[0], lambda process: process == 13)
    assert (found.foreign_processes, found.obstacle) == ({12, 14}, "")
    assert driver.find_processes("GPU-1") == frozenset()
    fake_gpus.fail("nvmlDeviceGetComputeRunningProcesses_v3", 4)
    assert driver.find_processes("GPU-0") == frozenset()


def test_a_process_descends_from_its_parents(tmp_path):
    for process, parent in ((30, 20), (20, 10), (10, 1), (40, 1)):
        (tmp_path / str(process)).mkdir()
        (tmp_path / str(process) / "stat").write_text(f"{process} (a ) name) S {parent} 0 0")
    assert is_descendant(30, {10}, tmp_path)
    assert is_descendant(10, {10}, tmp_path)
    assert not is_descendant(40, {10}, tmp_path)
    assert not is_descendant(99, {10}, tmp_path)
    assert is_descendant(os.getpid(), {os.getppid()}, Path("/proc"))
