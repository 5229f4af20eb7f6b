"""A bounded run of the fuzzer over every decoder; `scripts/fuzz --inputs 1000000` does more."""

from __future__ import annotations

import ast
import sys
from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path

import pytest

from protocol.errors import InvalidInput

ROOT = Path(__file__).resolve().parent.parent.parent
INPUTS = 48_000
"""Two thousand for each decoder: ten to twenty seconds."""

SHARE_MIN, SHARE_MAX = 0.05, 0.60
"""Of a decoder's inputs that are accepted. Fewer would mean that only its first checks are tried."""


def load_script(name):
    loader = SourceFileLoader(f"script_{name}", str(ROOT / "scripts" / name))
    spec = spec_from_loader(loader.name, loader)
    assert spec is not None
    module = module_from_spec(spec)
    sys.modules[loader.name] = module
    loader.exec_module(module)
    return module


FUZZ = load_script("fuzz")


def test_every_input_is_a_value_that_encodes_to_the_same_bytes_or_invalid_input():
    report = FUZZ.fuzz(INPUTS, seed=1)
    shown = "\n".join(f"{f.decoder}: {f.what}: {f.content.hex()}" for f in report.failures[:3])
    assert not report.failures, shown
    for name, count in report.inputs.items():
        share = report.accepted[name] / count
        assert SHARE_MIN <= share <= SHARE_MAX, f"{name}: {share:.1%} accepted"
    share = sum(report.accepted.values()) / sum(report.inputs.values())
    sys.stdout.write(f"{INPUTS} inputs, {share:.1%} accepted\n")


def test_the_same_seed_makes_the_same_inputs():
    target = FUZZ.make_targets()[0]
    runs = []
    for _ in range(2):
        mutator = FUZZ.Mutator(target, FUZZ.Random("7"))
        runs.append([mutator.make() for _ in range(200)])
    assert runs[0] == runs[1]
    assert len(set(runs[0])) > 150


@pytest.mark.parametrize("fault", ["crash", "second spelling"])
def test_the_fuzzer_notices_a_broken_decoder(fault):
    def decode(encoded):
        if len(encoded) % 3 == 0:
            raise InvalidInput
        if fault == "crash":
            return encoded[7]
        return encoded[:3]

    target = FUZZ.make_targets()[0]._replace(decode=decode, reencode=lambda value: value)
    mutator = FUZZ.Mutator(target, FUZZ.Random("7"))
    outcomes = [FUZZ.try_input(target, mutator.make()) for _ in range(300)]
    assert any(what for _, what in outcomes)


def test_every_decoder_of_the_protocol_is_fuzzed():
    """A new function `decode_...` in protocol/ must be added to the table, or named here with its reason."""
    elsewhere = {
        "decode",  # the codec itself: under every other one
    }
    found = set()
    for path in sorted((ROOT / "protocol").glob("*.py")):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.FunctionDef) and node.name.startswith("decode"):
                found.add(node.name)
    script = (ROOT / "scripts" / "fuzz").read_text(encoding="utf-8")
    assert {name for name in found - elsewhere if f".{name}" not in script} == set()
