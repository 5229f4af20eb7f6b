"""The owner of a machine is told what it has, what of it is lent, and what is wrong with it."""

from __future__ import annotations

import json
from contextlib import nullcontext

import pytest

from node.cli import run
from node.donor.doctor import choose_lendable_gpus, examine
from node.donor.hardware import find_hardware
from node.donor.serving import find_lent_gpus
from node.donor.settings import DonorHome, GpuScore, Score, Settings
from node.errors import UserError
from tests.node.donor.fake_gpus import A100_BYTES
from tests.node.donor.test_devices import device_files

__all__ = ["device_files"]


def make_score(*faults):
    gpus = [
        GpuScore(f"GPU-{n}", "A100-SXM4-80GB", A100_BYTES, 900 + n, 1.0, 1.0, 80.0, fault)
        for n, fault in enumerate(faults)
    ]
    return Score(900, 1.0, 1.0, 80.0, 0, tuple(gpus))


@pytest.fixture
def home(tmp_path, fake_gpus, device_files):
    """A donor that lends three of four cards."""
    fake_gpus.set_up(4)
    home = DonorHome(tmp_path / "donor")
    home.directory.mkdir()
    gpus = ["GPU-0", "GPU-1", "GPU-2"]
    home.save_settings(Settings("http://node", "bench", 1, 10**8, 10**6, ["batch"], ["python-gpu"], gpus=gpus))
    home.save_score(make_score("", "", ""))
    return home


def find_checks(home, device_files):
    return {check.name.removeprefix("A100-SXM4-80GB "): check for check in examine(home, device_files)}


def test_sound_cards_that_are_lent_and_those_that_are_not_are_fine(home, device_files):
    checks = find_checks(home, device_files)
    assert {check.state for check in checks.values()} == {"ok"}, checks
    assert checks["GPU-1"].actual == "lent, weight 901, 0.0 of 85.9 GB used, 35 °C"
    assert checks["GPU-3"].actual.startswith("not lent, ")
    assert "nvidia2" in checks["device files"].actual


def test_each_trouble_is_told_at_its_card(home, device_files, fake_gpus):
    home.save_score(make_score("", "it computes wrongly"))
    fake_gpus.change(0, uncorrected=3, corrected=2, temperature=90, throttle=0x40)
    fake_gpus.change(2, pids="1")
    fake_gpus.change(3, mig=1)
    checks = find_checks(home, device_files)
    states = {name: check.state for name, check in checks.items() if name.startswith("GPU-")}
    assert states == {"GPU-0": "failed", "GPU-1": "failed", "GPU-2": "failed", "GPU-3": "warning"}
    for name, told in (
        ("GPU-0", "3 memory errors"), ("GPU-0", "2 mended"), ("GPU-0", "heat"), ("GPU-1", "computes wrongly"),
        ("GPU-2", "never measured"), ("GPU-3", "MIG"),
    ):  # fmt: skip
        assert told in checks[name].actual


def test_a_card_that_others_use_and_one_that_is_gone_are_told(home, device_files, fake_gpus):
    fake_gpus.change(1, pids="1")
    fake_gpus.fail("nvmlDeviceGetHandleByIndex_v2", 15, number=2)
    (device_files / "nvidia-uvm").unlink()
    checks = find_checks(home, device_files)
    assert (checks["GPU-1"].state, "processes 1" in checks["GPU-1"].actual) == ("warning", True)
    assert (checks["GPU-2"].state, checks["GPU-2"].actual) == ("failed", "lent, and not there")
    assert "nvidia-uvm is missing" in checks["device files"].actual


def test_only_sound_cards_are_chosen_for_lending(fake_gpus, tmp_path):
    fake_gpus.set_up(3)
    fake_gpus.change(1, xid=79)
    found = find_hardware(tmp_path).gpus
    assert choose_lendable_gpus(found, None) == ["GPU-0", "GPU-2"]
    assert choose_lendable_gpus(found, 1) == ["GPU-0"]
    assert choose_lendable_gpus(found, 0) == choose_lendable_gpus((), None) == []
    with pytest.raises(UserError, match=r"has 2 GPUs that can be lent, not 3 \(GPU-1: .*Xid 79"):
        choose_lendable_gpus(found, 3)


def test_the_agent_lends_what_passed_the_self_test_and_asks_for_one_when_others_are_named(home):
    settings = home.load_settings()
    assert find_lent_gpus(settings, make_score("", "it computes wrongly", "")) == ["GPU-0", "GPU-2"]
    for score in (make_score("", ""), make_score("", "", "", ""), make_score()):
        with pytest.raises(UserError, match="selftest"):
            find_lent_gpus(settings, score)


def test_set_up_shows_the_cards_and_lends_them(fake_gpus, fake_node, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr("node.served_charter.NodeClient", lambda place: nullcontext(fake_node))
    fake_gpus.set_up(2)
    fake_gpus.change(1, mig=1)
    words = ["donor", "setup", "--node", "http://node", "--memory", "1", "--home", str(tmp_path)]
    assert run(words) == 1  # without consent
    told = capsys.readouterr().err
    assert "GPU            A100-SXM4-80GB, 85.9 GB (GPU-0), whole, to one job at a time" in told
    assert "Not lent       A100-SXM4-80GB, 85.9 GB (GPU-1): it is split" in told
    assert run([*words, "-y"]) == 0
    settings = DonorHome(tmp_path / "donor").load_settings()
    assert (settings.gpus, settings.runtimes) == (["GPU-0"], ["python-gpu", "python-ml"])


def test_doctor_works_before_the_set_up_and_says_so(fake_gpus, capsys, tmp_path):
    fake_gpus.set_up(1)
    assert run(["donor", "doctor", "--home", str(tmp_path), "--json"]) == 0
    checks = {check["name"]: check for check in json.loads(capsys.readouterr().out)["checks"]}
    assert "donor setup" in checks["machine"]["remedy"]
    assert checks["A100-SXM4-80GB GPU-0"]["actual"].startswith("not lent")
    assert run(["donor", "doctor", "--home", str(tmp_path)]) == 0
    assert "none failed" in capsys.readouterr().out
