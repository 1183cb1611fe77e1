"""Profiles, ``--set``, ``--seeds`` and ``--only``: what they change, and where a fault of theirs points."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from ablate.errors import StudyError
from ablate.plan.trials import Plan, open_plan, plans_of

STUDY = """\
schema: ablate/v1
name: demo
task: json:loads
metrics: {acc: {goal: max}}
settings:
  model: {norm: none, widths: [6, 16], residual: false, scale: 1.0}
  train: {epochs: 15, lr: 0.1, subset: null}
steps:
  - name: batchnorm
    title: BatchNorm
    set: {model.norm: before_relu}
  - name: wide
    set:
      model.widths: [64, 64]
      train.lr: 0.2
  - name: residual
    set: {model.residual: true}
reference:
  source: a paper
  values: {acc: {baseline: 23, wide: 31, without-wide: 30}}
assumed: {wide: the widths are not stated, train.lr: nor is this, train: nor these}
seeds: 3
profiles:
  quick:
    seeds: [7, 9]
    execution: {threads: 2}
    settings:
      train: {epochs: 2, lr: 1, subset: null}
      model: {widths: [2]}
    steps:
      batchnorm: {title: BN}
      wide:
        set:
          model.widths: [4, 4]
          train.lr: null
  narrow:
    question: null
    steps: {wide: null}
    assumed: {residual: it is an identity}
"""


@pytest.fixture
def plan(tmp_path: Path) -> Callable[..., Plan]:
    def plan(text: str = STUDY, **options: object) -> Plan:
        path = tmp_path / "study.yaml"
        path.write_text(text)
        return open_plan(path, **options)  # type: ignore[arg-type]

    return plan


Opener = Callable[..., Plan]


def faults_of(plan: Opener, text: str = STUDY, **options: object) -> list[str]:
    with pytest.raises(StudyError) as error:
        plan(text, **options)
    return [f"{fault.where.rpartition('/')[2]} {fault.message}" for fault in error.value.faults]


def test_without_a_profile(plan: Opener) -> None:
    study = plan().study
    assert (study.title, study.profile, study.seeds.numbers) == ("demo", "", (1, 2, 3))
    assert "profiles" not in study.spec()


def test_a_profile_merges_maps_and_replaces_lists(plan: Opener) -> None:
    study = plan(STUDY.replace("subset: null}\n      model", "}\n      model"), profile="quick").study
    assert (study.title, study.profile) == ("demo@quick", "quick")
    assert study.seeds.numbers == (7, 9)
    assert study.execution.threads == 2
    assert study.settings["model"] == {"norm": "none", "widths": [2], "residual": False, "scale": 1.0}
    assert study.settings["train"] == {"epochs": 2, "lr": 1.0, "subset": None}
    assert [step.name for step in study.steps] == ["batchnorm", "wide", "residual"]
    assert study.step("batchnorm").title == "BN"
    assert study.step("batchnorm").set == {"model.norm": "before_relu"}
    assert study.step("wide").set == {"model.widths": [4, 4]}


def test_null_in_a_profile_deletes(plan: Opener) -> None:
    made = plan(profile="quick")
    assert "subset" not in made.study.settings["train"]
    assert isinstance(made.study.settings["train"]["lr"], float)  # 1 over 0.1 is 1.0


def test_a_deleted_step_takes_along_what_is_said_of_it(plan: Opener) -> None:
    text = STUDY.replace("    question: null\n", "")
    study = plan(text, profile="narrow").study
    assert [step.name for step in study.steps] == ["batchnorm", "residual"]
    assert study.reference is not None
    assert study.reference.values == {"acc": {"baseline": 23.0}}
    assert list(study.assumed) == ["train.lr", "train", "residual"]


def test_a_fault_points_to_the_line_that_holds_it(plan: Opener) -> None:
    text = STUDY.replace("    question: null\n", "")
    assert faults_of(plan, text.replace("[64, 64]", "64")) == [
        "study.yaml:14 step `wide`: `model.widths` takes a list; `64` is an integer"
    ]
    in_profile = text.replace("[4, 4]", "4")
    assert plan(in_profile).study.seeds.numbers == (1, 2, 3)
    assert faults_of(plan, in_profile, profile="quick") == [
        "study.yaml:34 step `wide`: `model.widths` takes a list; `4` is an integer"
    ]
    # the third step is the second one here, and still stands where it stood
    below = text.replace("{model.residual: true}", "{model.residual: 1}")
    assert faults_of(plan, below, profile="narrow") == [
        "study.yaml:17 step `residual`: `model.residual` takes a boolean; `1` is an integer"
    ]


def test_a_profile_that_deletes_nothing(plan: Opener) -> None:
    assert faults_of(plan, profile="narrow") == [
        "study.yaml:37 `question: null` deletes nothing: the study has no such key here"
    ]


def test_aliased_settings_are_changed_in_one_place_only(plan: Opener) -> None:
    text = STUDY.replace("train: {epochs: 15", "copy: &t {lr: 0.1}\n  other: *t\n  train: {epochs: 15")
    text = text.replace("      model: {widths: [2]}", "      copy: {lr: 0.5}")
    study = plan(text, profile="quick").study
    assert (study.settings["copy"], study.settings["other"]) == ({"lr": 0.5}, {"lr": 0.1})


def test_plans_of_all_profiles(tmp_path: Path) -> None:
    path = tmp_path / "study.yaml"
    path.write_text(STUDY)
    plans, faults = plans_of(path)
    assert [made.study.title for made in plans] == ["demo", "demo@quick"]
    assert [(fault.where, fault.message) for fault in faults] == [
        (f"{path}:37", "`question: null` deletes nothing: the study has no such key here (with the profile `narrow`)")
    ]
    path.write_text(STUDY.replace("residual: false", "residual: 0").replace("    question: null\n", ""))
    plans, faults = plans_of(path)
    assert plans == []
    assert [fault.where for fault in faults] == [f"{path}:17"]  # once, though all three have it


def test_set(plan: Opener) -> None:
    overrides = ["train.epochs=2", "settings.train.lr=1", "train.subset=50", "model.widths=[1, 2]"]
    overrides += [
        "resources.gpus=0",
        "resources.timeout=90s",
        "execution.dtype=bfloat16",
        "seeds=[4]",
        "analysis.alpha=0.1",
    ]
    study = plan(overrides=overrides).study
    assert study.settings["train"] == {"epochs": 2, "lr": 1.0, "subset": 50}
    assert study.settings["model"]["widths"] == [1, 2]
    assert (study.resources.timeout, study.execution.dtype, study.analysis.alpha) == (90.0, "bfloat16", 0.1)
    assert study.seeds.numbers == (4,)


def test_set_comes_after_the_profile(plan: Opener) -> None:
    study = plan(profile="quick", overrides=["train.epochs=3"]).study
    assert study.settings["train"]["epochs"] == 3


def test_set_reaches_settings_named_like_a_key_of_the_study(plan: Opener) -> None:
    text = STUDY.replace("  train: {epochs: 15", "  name: a\n  resources: {x: 1}\n  train: {epochs: 15")
    study = plan(text, overrides=["name=b", "settings.resources.x=2"]).study
    assert (study.name, study.settings["name"], study.settings["resources"]) == ("demo", "b", {"x": 2})


def test_all_overrides_are_checked_at_once(plan: Opener) -> None:
    overrides = ["train.epoch=2", "train.epochs=x", "train=1", "seeds=0", "steps.wide=1", "a", "train.lr=[1"]
    assert faults_of(plan, overrides=overrides) == [
        "--set train.epoch=2 there is no setting `train.epoch`",
        "--set train.epochs=x `train.epochs` takes an integer; `x` is text",
        "--set train=1 `train` is a group of settings",
        "--set steps.wide=1 --set does not reach `steps.wide`",
        "--set a an override is `path=value`",
        "--set train.lr=[1 a `,` or the closing `]` is missing",
        "--set seeds=0 `seeds` takes a count between 1 and 10,000; here it is `0`",
    ]


def test_an_override_is_in_the_fingerprint(plan: Opener) -> None:
    same = plan(overrides=["train.epochs=15"]).trials()
    assert set(same) == set(plan().trials())
    other = plan(overrides=["train.epochs=16"]).trials()
    assert not set(other) & set(same)


def test_only_keeps_what_is_compared(plan: Opener) -> None:
    full = plan()
    made = plan(only=["wide"])
    assert {each.arm for each in made.replicates} == {"batchnorm", "wide"}
    assert (made.arms, made.contrasts) == (full.arms, full.contrasts)
    assert len(made.trials()) == 6
    assert {each.arm for each in plan(only=["baseline"]).replicates} == {"baseline"}
    assert faults_of(plan, only=["wdie", "x"]) == ["--only there is no arm `wdie`", "--only there is no arm `x`"]


def test_only_is_nothing_for_a_path(plan: Opener) -> None:
    for only in (["baseline"], ["wdie"]):
        assert faults_of(plan, only=only, overrides=["designs=[path]"]) == [
            "--only a study with the design `path` is run as a whole"
        ]


def test_what_a_profile_deletes_can_conflict_with_nothing(plan: Opener) -> None:
    text = STUDY.replace("    question: null\n", "").replace(
        "- name: residual", "- name: residual\n    conflicts: [wide]"
    )
    assert faults_of(plan, text, profile="narrow") == [
        "study.yaml:17 step `residual` conflicts with `wide`, which the profile `narrow` deletes"
    ]


def test_seeds_of_other_kinds_are_replaced_whole(plan: Opener) -> None:
    text = STUDY.replace("seeds: [7, 9]", "seeds: {looks: [3, 5]}")
    assert plan(text, profile="quick").study.seeds.looks == (3, 5)
    text = STUDY.replace("seeds: 3", "seeds: {looks: [3, 5]}")
    assert plan(text, profile="quick").study.seeds.looks == ()
    assert plan(text, overrides=["seeds={mode: precision, half_width: 1}"]).study.seeds.half_width == 1.0
