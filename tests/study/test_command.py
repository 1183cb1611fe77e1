"""How a command is filled: what argparse and Hydra read from it is what the settings say, whatever they say."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import example, given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from ablate.errors import StudyError
from ablate.plan.trials import open_plan
from ablate.study.command import Unfillable, filled_environment, filled_words, finder, placeholders
from ablate.study.schema import Task

SETTINGS = {
    "train": {"lr": 1e-05, "epochs": 3, "amp": True, "ema": False, "subset": None},
    "model": {"widths": [6, 16], "name": "resnet 18", "none": []},
}


def words(command: str, *, flags: str | None = None, resume: str | None = None, **changes: Any) -> list[str]:
    task = Task.model_validate({"command": command, **({"flags": flags} if flags else {})})
    find = finder({**SETTINGS, **changes}, seed=7, folder="/f", resume=resume)
    return filled_words(task, find)


@pytest.mark.parametrize(
    ("command", "flags", "expected"),
    [
        ("python t.py --lr {train.lr} -s{seed}", None, ["python", "t.py", "--lr", "1e-05", "-s7"]),
        ("t --name={model.name} '{model.name}'", None, ["t", "--name=resnet 18", "resnet 18"]),
        ("t {{x}} {folder}/a {settings.json}", None, ["t", "{x}", "/f/a", "/f/settings.json"]),
        ("t 'a b' \"c\" d\\ e", None, ["t", "a b", "c", "d e"]),
        ("t --amp {train.amp} --ema {train.ema} --x", "argparse", ["t", "--amp", "--x"]),
        ("t --amp={train.amp} --ema={train.ema} --subset={train.subset}", "argparse", ["t", "--amp"]),
        ("t --subset {train.subset} --widths {model.widths}", "argparse", ["t", "--widths", "6", "16"]),
        ("t --none {model.none} {train.epochs}", "argparse", ["t", "--none", "3"]),
        ("t train.amp={train.amp} w={model.widths} s={train.subset}", "hydra",
         ["t", "train.amp=true", "w=[6,16]", "s=null"]),
        ("t n={model.name} lr={train.lr}", "hydra", ["t", "n='resnet 18'", "lr=1e-05"]),
        ("t --resume {resume} x", None, ["t", "x"]),
        ("t --resume={resume}/last.pt x", None, ["t", "x"]),
        ("t x {resume}", None, ["t", "x"]),
    ],
)  # fmt: skip
def test_filled_words(command: str, flags: str | None, expected: list[str]) -> None:
    assert words(command, flags=flags) == expected


def test_a_trial_that_goes_on_is_told_from_where() -> None:
    assert words("t --resume {resume}/last.pt", resume="/f/1") == ["t", "--resume", "/f/1/last.pt"]


@pytest.mark.parametrize(
    ("command", "flags", "why"),
    [
        ("t {train.amp}", None, "`true` of `train.amp` can't be written"),
        ("t {train.subset}", None, "`null` of `train.subset` can't be written"),
        ("t x{model.widths}", "argparse", r"`\[6, 16\]` of `model.widths` can't be written"),
        ("t {model}", None, "can't be written"),
        ("t {train.lr", None, "without its other half"),
        ("t 'x", None, "can't be split into words"),
        ("''", None, ""),
        ("   ", None, "is empty"),
    ],
)
def test_what_can_not_be_filled(command: str, flags: str | None, why: str) -> None:
    if why:
        with pytest.raises(Unfillable, match=why):
            words(command, flags=flags)
    else:
        assert words(command) == [""]


def test_the_environment() -> None:
    variables = {"LR": "{train.lr}", "AMP": "{train.amp}", "SUBSET": "{train.subset}", "WHERE": "{folder}/{seed}"}
    task = Task.model_validate({"command": "t", "environment": variables})
    find = finder(SETTINGS, seed=7, folder="/f", resume=None)
    assert filled_environment(task, find) == {"LR": "1e-05", "AMP": "true", "WHERE": "/f/7"}
    with pytest.raises(Unfillable, match="can't be the value of a variable"):
        filled_environment(task.model_copy(update={"environment": {"W": "{model.widths}"}}), find)


text = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=12)
nasty = st.text("'\"\\$`;|&{}[](),:=# \n-=*?<>%!~", max_size=8)
scalar = st.one_of(text, nasty, st.integers(), st.floats(allow_nan=False, allow_infinity=False))


@given(st.one_of(text, nasty))
@example("--evil=1")
@example("$(touch x); `id`")
def test_a_value_stays_one_argument_of_a_real_process(value: str) -> None:
    """Of a few: the words are the list that the process is started with, so nothing is split again."""
    filled = words("t --name={model.name} --seed {seed}", model={"name": value})
    assert filled == ["t", f"--name={value}", "--seed", "7"]


@pytest.mark.parametrize(
    "value", ["a b; touch evil", "$(touch evil)", "'; touch evil; '", "--evil", "*", "\n", "{seed}"]
)
def test_what_a_program_is_given(value: str) -> None:
    show = f"{sys.executable} -c 'import sys; print(ascii(sys.argv[1:]))' --name={{model.name}}"
    filled = words(show, model={"name": value})
    done = subprocess.run(filled, capture_output=True, text=True, check=True)
    assert done.stdout == f"{['--name=' + value]!a}\n"


@given(st.booleans(), st.lists(st.one_of(st.integers(), text.filter(lambda t: not t.startswith("-"))), min_size=1))
@settings(max_examples=50)
def test_argparse_reads_what_the_settings_say(amp: bool, widths: list[Any]) -> None:
    filled = words("t --amp {train.amp} --widths {model.widths}", flags="argparse",
                   train={"amp": amp}, model={"widths": widths})  # fmt: skip
    parser = argparse.ArgumentParser()
    parser.add_argument("--amp", action="store_true")
    parser.add_argument("--widths", nargs="+")
    read = parser.parse_args(filled[1:])
    assert (read.amp, read.widths) == (amp, [str(each) for each in widths])


VALUES = st.recursive(
    st.one_of(scalar, st.booleans(), st.none()), lambda inner: st.lists(inner, max_size=3), max_leaves=4
)


@given(VALUES)
@example("${oc.env:HOME}")
@example("\\${x}")
@example("'")
@example("\\'")
@example("\\")
@example("a\\\\")
@example("null")
@example("1e-3")
@example("a,b")
@settings(max_examples=300, deadline=None)
def test_hydra_reads_what_the_settings_say(value: Any) -> None:
    (word,) = words("model.name={model.name}", flags="hydra", model={"name": value})
    override = OverridesParser.create().parse_override(word)
    assert not override.is_sweep_override()
    assert OmegaConf.to_container(OmegaConf.create({"x": override.value()}), resolve=True) == {"x": value}


@given(st.text(min_size=1, max_size=30))
def test_any_text_is_filled_or_refused(command: str) -> None:
    try:
        words(command)
        placeholders(command)
    except (Unfillable, KeyError):
        return


def test_a_step_below_a_value_is_the_only_fault(tmp_path: Path) -> None:
    study = {
        "schema": "ablate/v1", "name": "mine", "metrics": {"acc": {"goal": "max"}}, "settings": {"lr": 0.1},
        "task": {"command": f"{sys.executable} {{settings.json}} {{seed}}"},
        "steps": [{"name": "odd", "set": {"lr.deep": 1}}],
    }  # fmt: skip
    (tmp_path / "mine.yaml").write_text(json.dumps(study))
    with pytest.raises(StudyError) as refused:
        open_plan(tmp_path / "mine.yaml")
    assert [fault.message.partition(" ")[0] for fault in refused.value.faults] == ["step"]


def test_a_step_from_one_below_it_beside_one_without_a_name(tmp_path: Path) -> None:
    steps = [{"name": "first", "from": "last", "set": {"lr": 1}}, {"no": "name"}, {"name": "last", "set": {"lr": 2}}]
    study = {
        "schema": "ablate/v1", "name": "mine", "metrics": {"acc": {"goal": "max"}}, "settings": {"lr": 0.1},
        "task": "json:loads", "steps": steps,
    }  # fmt: skip
    (tmp_path / "mine.yaml").write_text(json.dumps(study))
    with pytest.raises(StudyError, match="step 2 has no `name`"):
        open_plan(tmp_path / "mine.yaml")
