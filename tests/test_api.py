"""From Python: what is declared there is the same study, and runs by the same code, as that of a file."""

from __future__ import annotations

import functools
import io
import json
import os
import re
import signal
import subprocess
import sys
import textwrap
import threading
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st
from ruamel.yaml import YAML

import ablate
from ablate import api
from ablate.errors import AblateError, StudyError
from ablate.plan.trials import make_plan, open_plan
from ablate.study.keywords import Declaration
from ablate.study.schema import Study
from tests.command import ablate as command
from tests.command import query, results
from tests.numbers import NUMBERS
from tests.run.test_stops import recorded, wait_until
from tests.studies import TOY, TOY_STUDY, write_study
from tests.study.test_study_fuzz import LEAST, designs_like, json_values, sections, steps_like

TOY_KEYWORDS: dict[str, Any] = {
    "name": "toy",
    "task": "toy:train",
    "metrics": {"acc": {"goal": "max"}},
    "settings": {"level": 1, "epochs": 3, "pause": 0.0, "extra": 0},
    "steps": [{"name": "two", "set": {"level": 2}}, {"name": "three", "set": {"level": 3}}],
    "seeds": 2,
}
SCRIPT = f"""
import sys
import ablate

study = ablate.declare(**{TOY_KEYWORDS!r})
if __name__ == "__main__":
    analysis = ablate.run_study(study, jobs=2)
    print(ablate.render(analysis, "markdown"))
"""


def faults(**keywords: Any) -> str:
    with pytest.raises(StudyError) as raised:
        ablate.declare(**keywords)
    return str(raised.value)


def python(script: str, cwd: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    (cwd / "program.py").write_text(textwrap.dedent(script))
    return subprocess.run(
        [sys.executable, "program.py", *arguments], cwd=cwd, capture_output=True, text=True, timeout=120
    )


# --- the names -------------------------------------------------------------------------------------------------------


def test_the_package_has_the_names_of_the_api_and_no_others() -> None:
    assert ablate.__all__ == api.__all__
    assert all(getattr(ablate, name) is getattr(api, name) for name in api.__all__)
    assert set(api.__all__) <= set(dir(ablate))
    with pytest.raises(AttributeError, match="module `ablate` has no `declair`"):
        ablate.declair  # type: ignore[attr-defined]  # noqa: B018


def test_the_keywords_are_the_keys_of_a_study_file() -> None:
    keys = {field.alias or name for name, field in Study.model_fields.items()}
    assert set(Declaration.__annotations__) == keys - {"schema"} | {"profiles"}


# --- one study, two ways ---------------------------------------------------------------------------------------------


def as_yaml(value: Any) -> str:
    yaml, text = YAML(typ="safe", pure=True), io.StringIO()
    yaml.sort_base_mapping_type_on_output = False  # type: ignore[assignment]
    yaml.dump(value, text)
    return text.getvalue()


def read(path: Path, value: dict[str, Any]) -> tuple[list[str], dict[str, Any]] | list[str]:
    path.write_text(as_yaml({"schema": "ablate/v1", **value}))
    try:
        plan = open_plan(path)
    except StudyError as error:
        return sorted({fault.message for fault in error.faults})
    return [str(each) for each in plan.replicates], plan.frozen()


def declared(value: dict[str, Any]) -> tuple[list[str], dict[str, Any]] | list[str]:
    try:
        study = ablate.declare(**value)
    except StudyError as error:
        return sorted({re.sub(r"steps\[\d\]\S*", "…", fault.message) for fault in error.faults})
    plan = make_plan(study)
    return [str(each) for each in plan.replicates], plan.frozen()


BODY = {key: value for key, value in LEAST.items() if key != "schema"}
QUICKLY = settings(
    max_examples=150, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None
)


@given(steps_like(), designs_like, st.integers(1, 4), st.dictionaries(st.sampled_from("pqrs"), json_values, max_size=3))
@QUICKLY
def test_a_file_and_python_give_the_same_trials_and_the_same_plan(
    tmp_path: Path, steps: list[Any], designs: list[Any], seeds: int, more: dict[str, Any]
) -> None:
    value = {**BODY, "steps": steps, "designs": designs, "seeds": seeds, "settings": {**BODY["settings"], **more}}  # type: ignore[dict-item]
    by_file, by_python = read(tmp_path / "study.yaml", value), declared(value)
    event("sound" if isinstance(by_file, tuple) else "faults")
    assert (
        by_python == [re.sub(r"\S*study.yaml:\d+", "…", line) for line in by_file]
        if isinstance(by_file, list)
        else by_file
    )


@given(st.dictionaries(sections.filter(lambda key: key != "schema"), json_values, min_size=1, max_size=3))
@QUICKLY
def test_any_values_meet_the_same_refusals(tmp_path: Path, parts: dict[str, Any]) -> None:
    value = {**BODY, **parts}
    assert [*map(str, declared(value))] == [*map(str, read(tmp_path / "study.yaml", value))]


texts = st.text(max_size=12) | st.sampled_from(
    ["010", "1e5", "yes", "~", "null", "true", "a: b", "# no", " x ", "- a", "1:30", "<<", "é\n\tü"]
)


@given(
    st.dictionaries(
        st.sampled_from("abc"),
        st.recursive(
            texts | st.integers() | st.floats(),
            lambda b: st.lists(b, max_size=3) | st.dictionaries(st.sampled_from("xyz"), b, max_size=3),
            max_leaves=6,
        ),
        min_size=1,
    ),
    steps_like(),
    designs_like,
)
@QUICKLY
def test_the_written_file_is_the_same_study(
    tmp_path: Path, tree: dict[str, Any], steps: list[Any], designs: list[Any]
) -> None:
    path = tmp_path / "written.yaml"
    for value in ({**BODY, "settings": tree}, {**BODY, "steps": steps, "designs": designs}):
        try:
            study = ablate.declare(**value)  # type: ignore[arg-type]
        except StudyError:
            event("faults")
            continue
        event("sound")
        path.write_text(ablate.to_yaml(study))
        again = ablate.read_study(path)
        assert again.spec() == study.spec()
        assert list(again.spec()["settings"]) == list(study.spec()["settings"])


@pytest.mark.parametrize("profile", [None, "quick"])
def test_the_flagship_study_is_written_as_it_was_read(tmp_path: Path, profile: str | None) -> None:
    study = ablate.read_study(Path(__file__).parents[1] / "studies" / "basenet.yaml", profile=profile)
    (tmp_path / "basenet.py").write_text("def train(): ...\n")
    (tmp_path / "again.yaml").write_text(ablate.to_yaml(study))
    again = ablate.read_study(tmp_path / "again.yaml", profile=profile)
    assert again.spec() == study.spec()
    assert again.title == study.title
    assert ablate.plan_study(again).frozen() == ablate.plan_study(study).frozen()


def test_a_profile_of_what_is_declared(project: Path) -> None:
    write_study(project)
    quick = {"quick": {"seeds": 1, "steps": {"three": None}}}
    study = ablate.declare(**TOY_KEYWORDS, profiles=quick, profile="quick")
    assert ablate.declare(**{**TOY_KEYWORDS, "seeds": range(3)}).seeds.numbers == (0, 1, 2)
    assert (study.title, study.seeds.numbers, len(study.steps)) == ("toy@quick", (1,), 1)
    with pytest.raises(StudyError, match="profile=quack: the study has no such profile\nhint: did you mean `quick`"):
        ablate.declare(**TOY_KEYWORDS, profiles=quick, profile="quack")


# --- faults ----------------------------------------------------------------------------------------------------------


def test_all_faults_are_said_at_once_by_their_keywords(project: Path) -> None:
    write_study(project)
    said = faults(
        name="Toy",
        task="toy:tain",
        metrics={"acc": {"goal": "maximum"}},
        settings={"lr": float("nan"), "train": {"lr": np.float32(0.5)}, "where": Path("data"), "x": "a\0b", "y": 2**64},
        steps=[{"name": "a", "set": {"train.rl": 1}}, {"name": "b", "sett": {"lr": 2}}],
        seeds={1, 2},
        desings=["ladder"],
    )
    assert said.splitlines() == [
        "error: settings.lr: `nan` is not a finite number",
        "error: settings.train.lr: a value of the type `float32` is not plain",
        "hint: `.item()` gives the plain number",
        "error: settings.where: a value of the type `PosixPath` is not plain",
        "hint: write it as text: `str(path)`",
        "error: settings.x: a text may not hold the control character U+0000",
        "error: settings.y: an integer that needs more than 64 bits",
        "error: seeds: a value of the type `set` is not plain",
        "hint: write it as a list: `list(…)`",
        "error: name: `name` takes lower-case letters, digits and `-`, at most 64; here it is `Toy`",
        "hint: for example `toy`",
        "error: metrics.acc.goal: `metrics.acc.goal` takes max or min; here it is `maximum`",
        "hint: did you mean `max`?",
        "error: steps[1].sett: unknown key `sett` in step `b`",
        "hint: did you mean `set`?",
        "error: desings: unknown key `desings`",
        "hint: did you mean `designs`?",
        "error: steps[0].set.train.rl: step `a` sets `train.rl`, which is not in the settings",
        "hint: did you mean `train.lr`? Or declare it in the settings, with null if it has no value yet",
        f"error: task: {project}/toy.py has no function `tain`",
        "hint: did you mean `train`?",
    ]


def test_faults_of_designs_are_those_of_the_study(project: Path) -> None:
    write_study(project)
    idle = [{"name": "same", "set": {"level": 1}}]
    assert faults(**{**TOY_KEYWORDS, "steps": idle}).startswith(
        "error: steps[0]: step `same` leaves the settings unchanged"
    )
    assert faults() == "\n".join(f"error: declare(): `{key}` is missing\nhint: {hint}" for key, hint in MISSING.items())


MISSING = {
    "name": "lower-case letters, digits and `-`, at most 64",
    "task": "for example `task: basenet:train`, with basenet.py beside the study",
    "metrics": "for example `metrics: {val_acc: {goal: max}}`; the first is the primary one",
    "settings": "the baseline's settings: the whole tree that the task receives",
}


def test_nothing_without_end_is_declared(project: Path) -> None:
    write_study(project)
    endless: dict[str, Any] = {}
    endless["more"] = endless
    assert "settings.more.more: nested deeper than 50 levels" in faults(**{**TOY_KEYWORDS, "settings": endless})
    assert "settings: a study holds at most 50,000 values" in faults(
        **{**TOY_KEYWORDS, "settings": {"x": [0] * 60_000}}
    )
    assert "settings: a key must be text; here it is `3`" in faults(**{**TOY_KEYWORDS, "settings": {3: 4}})


# --- a task that is a function ---------------------------------------------------------------------------------------


@pytest.fixture
def toy(project: Path) -> Iterator[types.ModuleType]:
    """The module of a task, imported from the project as a script beside it would."""
    extra = """
import functools

class Trainer:
    def train(self, settings, context): ...

@functools.cache
def wrapped(settings, context): ...
"""
    write_study(project, task=TOY + extra)
    (project / "package").mkdir()
    (project / "package" / "__init__.py").write_text("def inside(settings, context): ...\n")
    (project / "package" / "deep.py").write_text("def deep(settings, context): ...\n")
    sys.path.insert(0, str(project))
    try:
        import toy  # type: ignore[import-not-found]

        yield toy
    finally:
        sys.path.remove(str(project))
        for name in ("toy", "package", "package.deep"):
            sys.modules.pop(name, None)


def test_a_function_is_named_and_found_where_it_was_imported_from(
    toy: types.ModuleType, project: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    import package.deep  # type: ignore[import-not-found]

    os.chdir(tmp_path_factory.mktemp("elsewhere"))
    by_function = ablate.declare(**{**TOY_KEYWORDS, "task": toy.train})
    assert by_function.folder == project
    by_name = ablate.declare(**TOY_KEYWORDS, folder=project)
    assert by_function.spec() == by_name.spec()
    for function, name in ((package.inside, "package:inside"), (package.deep.deep, "package.deep:deep")):
        study = ablate.declare(**{**TOY_KEYWORDS, "task": function})
        assert (study.task.function, study.folder) == (name, project)
    assert ablate.declare(**{**TOY_KEYWORDS, "task": toy.wrapped}).task.function == "toy:wrapped"


def test_what_no_worker_could_import_is_refused(toy: types.ModuleType) -> None:
    def closure(settings: object, context: object) -> None: ...

    ours = types.FunctionType(toy.train.__code__, {}, "train")
    ours.__module__ = "toy"
    main = types.FunctionType(toy.train.__code__, {}, "train")
    main.__module__ = "__main__"
    for task, why in (
        (lambda *_: None, "the task is a lambda, which no other process can import"),
        (closure, "defined inside a function or a class, where no other process finds it"),
        (toy.Trainer().train, "the task `Trainer.train` is defined inside a function or a class"),
        (functools.partial(toy.train), "the task is no function of a module"),
        (ours, "`toy.train` is another object than this task"),
        (main, "the task `train` is defined in the program that runs, which no other process can import"),
    ):
        said = faults(**{**TOY_KEYWORDS, "task": task})
        assert said.startswith("error: task: ")
        assert why in said
        assert said.endswith('hint: put it into a module beside the study, and write task="module:function"')
        assert said.count("error: ") == 1


# --- running ---------------------------------------------------------------------------------------------------------

ROWS = f"""{NUMBERS}
    SELECT s.name, s.profile, s.version, s.spec_json, p.plan_json, a.position, a.name, a.title, a.parent,
           a.settings_json, r.role, r.seed, r.position, t.fingerprint, t.task, t.execution_json, t.resources_json,
           t.source, t.state, t.claim, t.result_claim, e.outcome, e.code_sha256, m.metric, m.epoch, m.value
    FROM study s JOIN plan p ON p.study = s.id JOIN arm a ON a.study = s.id JOIN replicate r ON r.arm = a.id
    JOIN trial t ON t.id = r.trial JOIN attempt e ON e.trial = t.id JOIN number m ON m.trial = t.id
    ORDER BY r.position, m.epoch
"""


def test_a_program_and_the_command_leave_the_same_rows(project: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    write_study(project)
    done = python(SCRIPT, project)
    assert done.returncode == 0, done.stderr
    assert "[6/6] " in done.stderr
    assert "| baseline |" in done.stdout
    other = tmp_path_factory.mktemp("other")
    (other / ".git").mkdir()
    write_study(other)
    assert command("run", "toy.yaml", cwd=other).returncode == 0
    assert query(project, ROWS) == query(other, ROWS)
    assert len(query(project, ROWS)) == 24
    assert query(project, "SELECT file FROM study") == [("",)]
    assert query(project, "SELECT command FROM runner") == [("python program.py",)]

    again = command("run", "toy.yaml", cwd=project)
    assert "6 trials done (trained nothing new)" in again.stderr, "the file declares what the program did"
    assert "is sound: every trial" in command("doctor", "--verify", cwd=project).stdout


def test_what_is_run_is_returned_and_found_again(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_study(project)
    study = ablate.declare(**TOY_KEYWORDS)
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)}
    part = ablate.run_study(study, only=["two"], quiet=True)
    assert part.counts.done == 4
    assert {number: signal.getsignal(number) for number in before} == before
    analysis = ablate.run_study(study, quiet=True)
    assert analysis.counts.done == 6
    assert analysis == ablate.analyse_study(study) == ablate.analyse_study("toy") == ablate.analyse_study()
    frame = ablate.trials_frame(study)
    assert list(frame["arm"].unique()) == ["baseline", "two", "three"]
    assert frame["acc"].notna().all()
    assert json.loads(ablate.render(analysis, "json"))["study"]["title"] == "toy"
    assert "toy" in ablate.render(analysis)
    assert r"\label{tab:toy-ladder}" in ablate.render(analysis, "latex", columns=["steps", "acc"])
    with pytest.raises(AblateError, match="JSON has no columns"):
        ablate.render(analysis, "json", columns=["acc"])
    with pytest.raises(AblateError, match="`columns` takes a list"):
        ablate.render(analysis, columns="acc")
    assert "\x1b" not in ablate.render(analysis)
    with pytest.raises(AblateError, match="a report is text, markdown, latex or json, not 'html'"):
        ablate.render(analysis, "html")  # type: ignore[arg-type]
    with pytest.raises(StudyError, match="--only: there is no arm `tow`"):
        ablate.run_study(study, only=["tow"], quiet=True)
    (project / "toy.py").write_text(TOY + "\nx = 1\n")
    with pytest.raises(AblateError, match='in Python old_code="keep", or "fresh"'):
        ablate.run_study(study, quiet=True)
    assert ablate.run_study(study, old_code="keep", quiet=True).counts.done == 6
    monkeypatch.setenv("ABLATE_STORE", str(project / "other.db"))
    assert ablate.run_study(ablate.declare(**{**TOY_KEYWORDS, "seeds": 1}), quiet=True).counts.planned == 3


def test_an_edit_is_said_and_what_is_there_is_not_trained_again(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_study(project)
    ablate.run_study(ablate.declare(**TOY_KEYWORDS), quiet=True)
    capsys.readouterr()
    ablate.run_study(ablate.declare(**{**TOY_KEYWORDS, "seeds": 3}))
    said = capsys.readouterr().err
    assert "toy has changed since it was last run (version 1):\n  seeds: [1, 2] → [1, 2, 3]\n" in said
    assert "6 trials kept, 3 to train" in said


def test_a_program_that_is_its_own_task_does_not_run_in_its_workers(project: Path) -> None:
    unguarded = TOY + SCRIPT.replace('if __name__ == "__main__":', "if True:").replace("toy:train", "program:train")
    done = python(unguarded, project)
    assert done.returncode == 1
    assert "`run_study` is called where a worker imports the task" in done.stderr
    assert "hint: put it under `if __name__ == '__main__':`" in done.stderr
    guarded = python(TOY + SCRIPT.replace("toy:train", "program:train"), project)
    assert guarded.returncode == 0, guarded.stderr


def test_only_the_main_thread_runs_a_study(project: Path) -> None:
    write_study(project)
    study = ablate.declare(**TOY_KEYWORDS)
    raised: list[Exception] = []

    def run() -> None:
        try:
            ablate.run_study(study, quiet=True)
        except AblateError as error:
            raised.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join(60)
    assert "only the main thread is told when a run is to stop" in str(raised[0])
    assert not (project / "runs").exists()


def test_ctrl_c_loses_nothing_and_is_the_programs_own_to_handle(project: Path) -> None:
    write_study(project)
    slow = SCRIPT.replace("'pause': 0.0", "'pause': 0.05").replace("'epochs': 3", "'epochs': 40")
    caught = slow.replace("    analysis =", "    sys.argv[1:] or sys.exit(3)\n    analysis =")
    (project / "program.py").write_text(caught)
    process = subprocess.Popen(
        [sys.executable, "program.py", "go"], cwd=project, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    wait_until(lambda: recorded(project))
    process.send_signal(signal.SIGINT)
    said = process.communicate(timeout=100)[1]
    assert "KeyboardInterrupt" in said
    assert process.returncode == -signal.SIGINT
    outcomes = {outcome for (outcome,) in query(project, "SELECT outcome FROM attempt")}
    assert "interrupted" in outcomes
    assert outcomes <= {"interrupted", "ok"}
    status = command("status", cwd=project)
    assert "python program.py go" in status.stdout
    (project / "program.py").write_text(caught)
    again = subprocess.run(
        [sys.executable, "program.py", "go"], cwd=project, capture_output=True, text=True, timeout=200
    )
    assert again.returncode == 0, again.stderr
    assert len(results(project)) == 6 * 41
    assert query(project, "SELECT count(*) FROM attempt WHERE resumed_from IS NOT NULL") != [(0,)]


def test_failed_trials_of_a_declared_study(project: Path) -> None:
    write_study(project, task=TOY.replace("state = ", "1 / (settings['level'] - 2)\n    state = "))
    analysis = ablate.run_study(ablate.declare(**TOY_KEYWORDS), quiet=True)
    assert (analysis.counts.done, analysis.counts.failed) == (4, 2)
    said = command("retry", cwd=project).stderr
    assert "2 failed trials back in the queue" in said
    assert "run them with: the program that declares it" in said


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda study: ablate.run_study(study, only="two"),
         "error: run_study: `only` takes a list; 'two' is text\nhint: only=['two']"),
        (lambda _: ablate.read_study("toy.yaml", overrides="level=2"),
         "error: read_study: `overrides` takes a list; 'level=2' is text\nhint: overrides=['level=2']"),
        (lambda _: ablate.run_study("toy.yaml"),
         "error: run_study: 'toy.yaml' is no study\nhint: `declare` and `read_study` return one"),
        (lambda _: ablate.plan_study({"name": "toy"}),
         "error: plan_study: {'name': 'toy'} is no study\nhint: `declare` and `read_study` return one"),
        (lambda study: ablate.run_study(study, old_code="maybe"),
         "error: run_study: old_code is ask, keep or fresh, not 'maybe'"),
    ],
)  # fmt: skip
def test_what_a_call_can_not_take_is_said(project: Path, call: Any, message: str) -> None:
    write_study(project, TOY_STUDY)
    with pytest.raises(AblateError) as raised:
        call(ablate.declare(**TOY_KEYWORDS))
    assert str(raised.value) == message
    assert not (project / "runs" / "ablate.db").exists()


def test_the_yaml_of_the_toy_is_the_toy_of_the_keywords(project: Path) -> None:
    path = write_study(project, TOY_STUDY)
    assert ablate.read_study(path).spec() == ablate.declare(**TOY_KEYWORDS).spec()


def test_results_are_loaded_for_a_notebook(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_study(project, TOY_STUDY.replace("seeds: 2", "seeds: 3"))
    assert command("run", str(path), cwd=project).returncode == 0
    monkeypatch.chdir(project)
    results = ablate.load("toy")
    assert repr(results) == "<results of toy: 9 of 9 trials done>"
    assert list(results.trials.arm.unique()) == ["baseline", "two", "three"]
    epochs = results.measurements.groupby(["arm", "seed", "metric"]).epoch.agg(list)
    assert set(map(tuple, epochs)) == {(1, 2, 3)}
    effects = results.effects.set_index(["design", "row"])
    gain = results.trials.groupby("arm").acc.mean()
    assert effects.loc[("ladder", "two"), "mean"] == pytest.approx(gain["two"] - gain["baseline"])
    assert str(results) == ablate.render(ablate.analyse_study("toy")).rstrip()
    html = results._repr_html_()
    assert html.count("<table") == len(ablate.analyse_study("toy").designs)
    assert "<script" not in html
    figure = results.figure(next(name for name in results.figures if name.startswith("forest")))
    assert figure.get_figwidth() > 3
    with pytest.raises(AblateError, match=r"toy has no figure 'forst-ladder'.*\n.*forest-ladder"):
        results.figure("forst-ladder")
