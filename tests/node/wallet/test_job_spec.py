"""The job file: what it may say, and that every mistake in it is named."""

from __future__ import annotations

import pytest

from node.errors import UserError
from node.wallet.job_spec import read_job_file

FULL = """
name: digits
workdir: .
runtime: python-ml
resources: {accelerators: "A100:2", vram: 40+, cpus: 4+, memory: 16+, disk_size: 2.5}
envs: {EPOCHS: 20, NAME: ada}
secrets: {TOKEN: null, CODE: "", PIN: 7}
network: [pypi.org:443]
file_mounts: {inputs/extra.csv: extra.csv}
setup: echo ready
run: |
  python3 train.py
max_duration: 10m
max_credits: 12.5
program: students
job_class: training
"""


@pytest.fixture
def read(tmp_path):
    (tmp_path / "extra.csv").write_text("1,2\n")

    def read(text):
        path = tmp_path / "job.yaml"
        path.write_text(text)
        return read_job_file(path, {"TOKEN": "hush-1", "CODE": "c-1", "PIN": "unused"})

    return read


def test_a_full_job_file_is_understood(read, tmp_path):
    spec = read(FULL)
    assert (spec.name, spec.workdir, spec.runtime) == ("digits", tmp_path.resolve(), "python-ml")
    assert (spec.cores, spec.memory_bytes, spec.disk_bytes) == (4, 16 * 10**9, 2_500_000_000)
    assert (spec.gpus, spec.gpu_memory_gb) == ((("A100", 2),), 40)
    assert (spec.is_online, spec.hosts) == (True, ("pypi.org:443",))
    variables = dict(spec.script.environment)
    assert variables.pop("ALLMENDE_CHECKPOINT") == "checkpoint"
    assert variables.pop("ALLMENDE_OUT") == "out"
    assert variables == {"EPOCHS": "20", "NAME": "ada", "TOKEN": "hush-1", "CODE": "c-1", "PIN": "7"}
    assert spec.secrets == ("CODE", "PIN", "TOKEN")
    assert (spec.wall_seconds, spec.amount_max, spec.program) == (600, 12_500, "students")
    assert spec.job_class == "training"
    assert [str(place) for place, _ in spec.mounts] == ["inputs/extra.csv"]


def test_secrets_do_not_show_in_what_is_printed_of_a_job(read):
    spec = read(FULL)
    assert "hush-1" not in repr(spec)
    assert "hush-1" not in repr(spec.needs)


@pytest.mark.parametrize(
    ("text", "wishes"),
    [
        ("A100", [("A100", 1)]),
        ("'A100-80GB:4'", [("A100-80GB", 4)]),
        ("{A100: 2}", [("A100", 2)]),
        ("[A100:2, H100:1]", [("A100", 2), ("H100", 1)]),
        ("{A100: 2, GPU: 1}", [("A100", 2), ("GPU", 1)]),
    ],
)
def test_accelerators_are_one_kind_or_several_of_which_any_will_do(read, text, wishes):
    assert list(read(f"name: a\nrun: x\nresources: {{accelerators: {text}}}\n").gpus) == wishes


def test_a_short_job_file_has_modest_wishes(read):
    spec = read("name: a\nrun: 'true'\n")
    assert (spec.cores, spec.memory_bytes, spec.gpus, spec.wall_seconds) == (1, 10**9, (), 3600)
    assert (spec.amount_max, spec.program, spec.runtime, spec.job_class) == (None, None, None, "batch")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("name: a\n", "run"),
        ("run: x\n", "name"),
        ("name: a\nrun: ''\n", "nothing to run"),
        ("name: a/b\nrun: x\n", "name"),
        ("name: a\nrun: yes\n", "run"),  # YAML reads this as a truth value
        ("name: a\nrun: x\ncolour: red\n", "colour"),
        ("name: a\nrun: x\nmax_duration: soon\n", "max_duration"),
        ("name: a\nrun: x\nmax_duration: 31d\n", "max_duration"),
        ("name: a\nrun: x\nmax_credits: many\n", "max_credits"),
        ("name: a\nrun: x\nresources: {cpus: 0}\n", "cpus"),
        ("name: a\nrun: x\nresources: {cpus: 1.5}\n", "cpus"),
        ("name: a\nrun: x\nresources: {memory: much}\n", "memory"),
        ("name: a\nrun: x\nresources: {accelerators: 'A100:x'}\n", "accelerators"),
        ("name: a\nrun: x\nworkdir: nowhere\n", "workdir"),
        ("name: a\nrun: x\nenvs: {1A: b}\n", "envs"),
        ("name: a\nrun: x\nenvs: {ALLMENDE_OUT: b}\n", "ALLMENDE_"),
        ("name: a\nrun: x\nsecrets: {LOST: null}\n", "LOST has no value"),
        ("name: a\nrun: x\nenvs: {TOKEN: 1}\nsecrets: {TOKEN: 2}\n", "among envs"),
        ("name: a\nrun: x\nnetwork: [example.org]\n", "network"),
        ("name: a\nrun: x\nresources: {accelerators: ['A100:0']}\n", "accelerators"),
        ("name: a\nrun: x\nresources: {vram: much}\n", "vram"),
        ("name: a\nrun: x\nfile_mounts: {/etc/passwd: extra.csv}\n", "file_mounts"),
        ("name: a\nrun: x\nfile_mounts: {../up: extra.csv}\n", "file_mounts"),
        ("name: a\nrun: x\nfile_mounts: {here: nowhere.csv}\n", "does not exist"),
        ("name: [a\n", "no job file"),
        ("!!python/object/apply:os.system ['true']\n", "no job file"),
        ("- a\n", "no job file"),
    ],
)
def test_each_mistake_is_named_in_one_line(read, text, told):
    with pytest.raises(UserError, match=told) as caught:
        read(text)
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(UserError, match="cannot read the job file"):
        read_job_file(tmp_path / "none.yaml")
