"""Weights by the formula, machines as they are found, settings that survive a round trip."""

from __future__ import annotations

import shutil

import pytest

from node.donor.calibrate import check_sandbox, compute_weight
from node.donor.executors.sandbox import Sandbox
from node.donor.hardware import find_hardware
from node.donor.settings import DonorHome, Score, Settings
from node.errors import UserError

SETTINGS = Settings(
    node_url="http://node.example",
    machine='the "big" one ☀',
    cores=1,
    memory_bytes=10**9,
    disk_bytes=10**8,
    job_classes=["batch"],
    runtimes=["python-ml"],
)


@pytest.mark.parametrize(
    ("tflops", "bandwidth", "memory", "weight"),
    [
        (312, 2039, 80, 1000),  # the reference, frozen for ever
        (2 * 312, 2039, 80, 1260),
        (8 * 312, 8 * 2039, 8 * 80, 8000),
        (0.178, 25.8, 4, 7),
        (1e-9, 1e-9, 1e-9, 1),
    ],
)
def test_golden_weights(tflops, bandwidth, memory, weight):
    assert compute_weight(tflops, bandwidth, memory) == weight


def test_a_machine_is_found_with_at_least_a_core_and_some_memory(tmp_path):
    machine = find_hardware(tmp_path / "not" / "yet")
    assert machine.cores >= 1
    assert machine.memory_bytes > 10**8
    assert machine.disk_free_bytes > 0


def test_gpus_are_found_with_how_they_are(fake_gpus, tmp_path):
    assert find_hardware(tmp_path).gpus == ()
    fake_gpus.set_up(2)
    fake_gpus.change(1, xid=79)
    sound, faulty = find_hardware(tmp_path).gpus
    assert (sound.gpu.name, sound.obstacle) == ("A100-SXM4-80GB", "")
    assert "Xid 79" in faulty.obstacle


def test_settings_are_written_so_that_they_are_read_the_same(tmp_path):
    home = DonorHome(tmp_path)
    home.save_settings(SETTINGS)
    assert home.load_settings() == SETTINGS
    assert "# longest job" in home.settings_path.read_text()


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [("cores = 1", "cores = 0", "cores"), ("cores = 1", "cors = 1", "cors"), ("cores = 1", "cores =", "read")],
)
def test_a_mistake_in_the_settings_is_named(tmp_path, old, new, told):
    home = DonorHome(tmp_path)
    home.save_settings(SETTINGS)
    home.settings_path.write_text(home.settings_path.read_text().replace(old, new))
    with pytest.raises(UserError, match=told):
        home.load_settings()


def test_a_score_and_a_wish_are_remembered(tmp_path):
    home = DonorHome(tmp_path)
    assert home.load_score() is None
    assert home.read_wish() == "run"
    score = Score(7, 178.0, 25.8, 4.0, 1000)
    home.save_score(score)
    home.write_wish("finish")
    assert (home.load_score(), home.read_wish()) == (score, "finish")


@pytest.mark.skipif(shutil.which("bwrap") is None, reason="needs bubblewrap")
async def test_the_sandbox_of_this_machine_holds(tmp_path):
    sandbox = Sandbox(tmp_path / "sandbox")
    try:
        await sandbox.sweep()
        await check_sandbox(sandbox, SETTINGS)
    finally:
        sandbox.close()
