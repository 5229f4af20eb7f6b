"""GPUs are lent for what they do: the measurement runs in the sandbox as on real cards, over a stand-in for cupy."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import pytest

from node.cli import run
from node.donor.calibrate import (
    RUNTIME_FOR_CORES,
    RUNTIME_FOR_GPUS,
    Workload,
    compute_effective_weight,
    find_slow_gpus,
    measure,
    repeat_selftest,
    should_repeat,
)
from node.donor.executors.devices import DevicePool
from node.donor.runtimes import KNOWN_RUNTIMES, build_runtime
from node.donor.settings import DonorHome, Score
from node.errors import UserError
from protocol.charter import Rate
from tests.node.donor.test_calibrate import SETTINGS
from tests.node.donor.test_devices import device_files, driver, make_sandbox

__all__ = ["device_files", "driver", "make_sandbox"]

MEBIBYTE = 2**20
SMALL = Workload("cupy", "float32", 64, MEBIBYTE // 4, MEBIBYTE, 0.05, 0.05)
MEMORY = 16 * MEBIBYTE
NUMPY = tuple(requirement for requirement in KNOWN_RUNTIMES["python-gpu"] if requirement.startswith("numpy"))


@pytest.fixture(scope="session")
def numpy_runtime(tmp_path_factory):
    """The packages of a processor's self-test, and the stand-in for those of a GPU's.

    Not built like a real one, which takes a minute: nothing is compiled, and pip may take numpy from its cache.
    """
    runtime = build_runtime("stand-in", (), tmp_path_factory.mktemp("runtimes"))
    (packages,) = runtime.directory.glob("lib/python3.*/site-packages")
    version = packages.parent.name.removeprefix("python")
    install = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--only-binary", ":all:", "--no-compile"]
    subprocess.run([*install, "--python-version", version, "--target", packages, *NUMPY], check=True)
    shutil.copy(Path(__file__).with_name("stand_in_cupy.py"), packages / "cupy.py")
    return runtime


class Bench:
    """Four cards, of which some misbehave, in a machine that is measured."""

    def __init__(self, fake_gpus, driver, device_files, make_sandbox, runtime):
        self._fake_gpus, self._driver, self._device_files = fake_gpus, driver, device_files
        self._make_sandbox, self._runtime = make_sandbox, runtime
        self._pool = DevicePool(None)

    @property
    def lent(self):
        return self._pool.lent

    async def __call__(self, rates=(), claims=MEMORY, home=None, **wrong):
        cards = {f"GPU-{n}": {"memory": MEMORY, **wrong.get(f"card{n}", {})} for n in range(4)}
        (self._runtime.directory / "cards.json").write_text(json.dumps(cards))
        self._fake_gpus.set_up(4, memory=claims)
        self._pool = DevicePool(self._driver, list(cards), devices=self._device_files)
        sandbox = await self._make_sandbox(self._pool)
        runtimes = {RUNTIME_FOR_GPUS: self._runtime}
        try:
            if home is not None:
                return await repeat_selftest(home, SETTINGS, sandbox, self._pool, runtimes, rates, 1000, SMALL)
            return await measure(sandbox, SETTINGS, runtimes, rates, self._driver.list_gpus(), 1000, SMALL)
        finally:
            sandbox.close()


@pytest.fixture
def bench(fake_gpus, driver, device_files, make_sandbox, numpy_runtime):
    return Bench(fake_gpus, driver, device_files, make_sandbox, numpy_runtime)


async def test_sound_cards_are_measured_all_at_once(bench):
    score = await bench()
    assert [gpu.uuid for gpu in score.gpus] == ["GPU-0", "GPU-1", "GPU-2", "GPU-3"]
    assert all(gpu.fault == "" for gpu in score.gpus), score
    assert all(0.9 * MEMORY <= gpu.memory_gb * 1e9 <= MEMORY for gpu in score.gpus)
    assert score.weight == min(gpu.weight for gpu in score.gpus) >= 1
    assert score.measured_at_seconds == 1000


@pytest.mark.parametrize(
    ("behaviour", "told"),
    [
        ({"memory": MEMORY // 2}, "claims 0.0 GB"),
        ({"wrong": 1}, "computes wrongly"),
        ({"forgetful": 1}, "other words than were stored"),
    ],
)
async def test_a_card_that_does_not_do_what_it_claims_is_not_lent(bench, behaviour, told):
    score = await bench(card2=behaviour)
    assert [gpu.uuid for gpu in score.sound_gpus] == ["GPU-0", "GPU-1", "GPU-3"]
    assert told in score.gpus[2].fault


async def test_without_a_single_sound_card_there_is_no_score(bench):
    with pytest.raises(UserError, match=r"A100-SXM4-80GB GPU-0: it claims"):
        await bench(claims=2 * MEMORY)


async def test_one_slow_card_of_four_is_found_and_the_machine_weighs_what_it_does(bench):
    score = await bench(card1={"slow": 1})
    assert [gpu.uuid for gpu in find_slow_gpus(score)] == ["GPU-1"]
    assert score.weight == score.gpus[1].weight
    assert score.gigaflops == score.gpus[1].gigaflops


async def test_the_charters_table_is_an_upper_bound(bench):
    assert (await bench(rates=(Rate("A100-SXM4-80GB", 1), Rate("B200", 4000)))).weight == 1


async def test_what_a_repetition_finds_holds_from_now_on(bench, tmp_path):
    home = DonorHome(tmp_path)
    home.save_score(Score(1000, 1.0, 1.0, 1.0, 0))
    score = await bench(home=home, card3={"wrong": 1})
    assert home.load_score() == score
    assert bench.lent == {"GPU-0", "GPU-1", "GPU-2"}
    with pytest.raises(UserError, match="no GPU can be lent"):
        await bench(home=home, claims=2 * MEMORY)
    assert bench.lent == set()


def test_the_command_measures_the_cards_that_were_set_up(
    fake_gpus, fake_node, device_files, numpy_runtime, monkeypatch, capsys, tmp_path
):
    fake_gpus.set_up(2, memory=MEMORY)
    (numpy_runtime.directory / "cards.json").write_text(
        json.dumps({"GPU-0": {"memory": MEMORY}, "GPU-1": {"memory": MEMORY, "wrong": 1}})
    )
    monkeypatch.setattr("node.served_charter.NodeClient", lambda place: nullcontext(fake_node))
    monkeypatch.setattr("node.donor.runtimes.build_runtime", lambda *given: numpy_runtime)
    monkeypatch.setattr("node.donor.calibrate.GPU_WORKLOAD", SMALL)
    monkeypatch.setattr("node.donor.executors.devices.DevicePool", partial(DevicePool, devices=device_files))
    home = ["--home", str(tmp_path)]
    assert run(["donor", "setup", "--node", "http://node", "--memory", "1", "-y", *home]) == 0
    assert run(["donor", "selftest", *home]) == 0
    printed = capsys.readouterr()
    assert "GPU A100-SXM4-80GB GPU-1: not lent, it computes wrongly" in printed.out
    assert "GPU A100-SXM4-80GB GPU-0: weight 1" in printed.out
    score = DonorHome(tmp_path / "donor").load_score()
    assert score is not None
    assert [gpu.uuid for gpu in score.sound_gpus] == ["GPU-0"]
    fake_gpus.set_up(1, memory=MEMORY)
    assert run(["donor", "selftest", *home]) == 1
    assert "GPU-1" in capsys.readouterr().err


async def test_cores_are_measured_by_the_same_program(make_sandbox, numpy_runtime):
    sandbox = await make_sandbox(DevicePool(None))
    work = Workload("numpy", "float32", 64, MEBIBYTE, MEBIBYTE, 0.05, 0.05)
    score = await measure(sandbox, SETTINGS, {RUNTIME_FOR_CORES: numpy_runtime}, (), (), 1000, work)
    assert (score.memory_gb, score.gpus) == (1.0, ())
    assert score.gigaflops > 0
    with pytest.raises(UserError, match="python-ml"):
        await measure(sandbox, SETTINGS, {}, (), (), 1000, work)


def test_the_effective_weight_is_the_lower_of_table_and_measurement():
    rates = (Rate("A100-SXM4-80GB", 1000), Rate("L4", 258))
    assert compute_effective_weight("A100-SXM4-80GB", 930, rates) == 930
    assert compute_effective_weight("L4", 930, rates) == 258
    assert compute_effective_weight("unheard of", 930, rates) == 930


def test_a_repetition_is_never_soon_ever_more_likely_and_certain_in_the_end():
    assert not should_repeat(3599, 0, 0.0)
    assert should_repeat(3600, 0, 0.0)
    assert not should_repeat(86_400, 0, 0.2)
    assert should_repeat(86_400, 0, 0.1)
    assert should_repeat(7 * 86_400, 0, 0.999_999)
    assert not should_repeat(0, 10**6, 0.0)  # the clock was set back
