"""Ids at fixed seeds stay what they were: every scheme, schedule, edit and way of refining.

The numbers are in tests/golden/pinned.json; tests/pinned.py has the calls and how they were made.
"""

import json
import subprocess
import sys

import pytest
from diffusers import DiffusionPipeline

import pinned
from codeclade import CodecladePipeline, CodecladeTextPipeline
from codeclade.components.blocks import CACHE_ARGUMENT
from codeclade.data.component_configs import LATER

GOLDEN = json.loads((pinned.GOLDEN / "pinned.json").read_text())
PUSHED = json.loads((pinned.GOLDEN / "pushed_0_1" / "ids.json").read_text())
GREEDY = json.loads((pinned.GOLDEN / "pushed_0_1" / "greedy_ids.json").read_text())


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=pytest.mark.slow if n == "bundled" else ()) for n in pinned.NAMES],
)
def test_calls_give_the_pinned_ids(name):
    found = pinned.cases(name, pinned.build(name))
    assert found.keys() == GOLDEN[name].keys()
    for case, ids in found.items():
        assert ids.tolist() == GOLDEN[name][case], case


def test_the_bundled_pipeline_gives_the_pinned_ids():
    for case, ids in pinned.plain_cases("bundled", pinned.build("bundled")).items():
        assert ids.tolist() == GOLDEN["bundled"][case], case


def test_the_pinned_calls_differ_from_each_other():
    for name, calls in GOLDEN.items():
        different = {str(ids) for ids in calls.values()}
        assert len(different) >= 0.7 * len(calls), name


@pytest.mark.parametrize("name", pinned.PUSHED)
def test_repositories_of_earlier_versions_load_with_the_installed_classes(name, tmp_path):
    pinned.assemble_pushed(name, tmp_path / name)
    kind = CodecladeTextPipeline if name == "text" else CodecladePipeline
    pipe = kind.from_pretrained(tmp_path / name)
    assert type(pipe.transformer).__module__ == "codeclade.components.transformer"
    assert pinned.pushed_ids(name, pipe, temperature=0).tolist() == GREEDY[name]
    for part in ("transformer", "refiner"):  # a config that is saved again has the same fields
        if pipe.components.get(part) is not None:
            config = getattr(pipe, part).config
            config.save_pretrained(tmp_path)
            again = json.loads((tmp_path / "config.json").read_text())
            before = json.loads((tmp_path / name / part / "config.json").read_text())
            later = {name: again[name] for name in LATER if name in again}
            assert again == before | later | {"transformers_version": again["transformers_version"]}


TRUSTING = """
import json, sys
import pinned
from diffusers import DiffusionPipeline

pipe = DiffusionPipeline.from_pretrained(sys.argv[1], trust_remote_code=True)
assert type(pipe).__module__.startswith("diffusers_modules"), type(pipe)
for settings in ({}, {"temperature": 0}):
    print(json.dumps(pinned.pushed_ids(sys.argv[2], pipe, **settings).tolist()))
"""


@pytest.mark.skipif(
    CACHE_ARGUMENT == "cache",
    reason="code of 0.1.0 calls a cache past_key_values, which transformers 5.24 refuses",
)
@pytest.mark.parametrize("name", ["cluster_token", "refiner"])
def test_repositories_of_earlier_versions_load_with_their_own_code(name, tmp_path):
    """A fresh process; diffusers' plain class trusts the code that came with the weights."""
    pinned.assemble_pushed(name, tmp_path / name)
    with pytest.raises(ValueError, match="trust_remote_code"):
        DiffusionPipeline.from_pretrained(tmp_path / name)
    result = subprocess.run(
        [sys.executable, "-c", TRUSTING, tmp_path / name, name],
        capture_output=True,
        text=True,
        env={"PYTHONPATH": ":".join(filter(None, sys.path)), "HF_HOME": str(tmp_path / "home")},
    )
    assert result.returncode == 0, result.stderr
    sampled, greedy = map(json.loads, result.stdout.splitlines()[-2:])
    assert sampled == PUSHED[name]
    assert greedy == GREEDY[name]
