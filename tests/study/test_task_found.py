"""Looking for a study's task without running it."""

from __future__ import annotations

from pathlib import Path

import pytest

from ablate.study.task import beside, task_faults

CANARY = "from pathlib import Path\nPath('imported').touch()\n"


def messages(task: str, folder: Path) -> list[str]:
    return [f"{fault.where}: {fault.message}" for fault in task_faults(task, folder, where="study.yaml:3")]


@pytest.mark.parametrize(
    "code",
    [
        "def train(settings, context): ...",
        "async def train(settings, context): ...",
        "class train: ...",
        "train = object()",
        "train: object = object()",
        "a, (b, train) = 1, (2, 3)",
        "from somewhere import fit as train",
        "import train",
        "import train.loop",
        "from somewhere import *",
        "def __getattr__(name): ...",
        "try:\n    from fast import train\nexcept ImportError:\n    from slow import train",
        "if True:\n    def train(settings, context): ...",
        "with open('x') as train: ...",
        "for train in range(3): ...",
        "x = '\\d'\ndef train(settings, context): ...",
        "x = " + "+".join(["1"] * 5000) + "\ndef train(settings, context): ...",
    ],
)
def test_found(code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model.py").write_text(f"{CANARY}{code}\n")
    assert messages("model:train", tmp_path) == []
    assert not (tmp_path / "imported").exists()


@pytest.mark.parametrize(
    "code",
    [
        "",
        "def fit(): ...",
        "class Model:\n    def train(self): ...",
        "def fit():\n    train = 1",
        "print(train)",
        "x.train = 1",
    ],
)
def test_not_found(code: str, tmp_path: Path) -> None:
    (tmp_path / "model.py").write_text(f"{code}\n")
    assert messages("model:train", tmp_path) == [f"study.yaml:3: {tmp_path / 'model.py'} has no function `train`"]


def test_modules(tmp_path: Path) -> None:
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "__init__.py").write_text("def train(): ...\n")
    (tmp_path / "package" / "deep.py").write_text("def train(): ...\n")
    assert beside("package", tmp_path) == tmp_path / "package" / "__init__.py"
    assert beside("package.deep", tmp_path) == tmp_path / "package" / "deep.py"
    assert beside("json", tmp_path) is None
    for task in ("package:train", "package.deep:train", "json:loads", "wave:open", "sklearn.datasets:load_digits"):
        assert messages(task, tmp_path) == []
    for module in ("package.other", "nowhere", "nowhere.deep"):
        assert messages(f"{module}:train", tmp_path) == [
            f"study.yaml:3: the task's module `{module}` is neither beside the study nor installed"
        ]


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        (b"x = (1\n", "model.py:1: the task is not valid Python: '(' was never closed"),
        (b"# coding: iso-8859-15\nx = '\xa4'\n", None),
        (b"x = '\xe9'\n", "model.py:1: the task is not valid Python: "),
        (b"x = 1\0\n", "the task is not valid Python: "),
        (b"x = " + b"(" * 5000, "the task is not valid Python: "),
        (b"x = " + b"-" * 200_000 + b"1", None),  # deeper than Python looks: importing it will tell
    ],
)
def test_broken_code(code: bytes, expected: str | None, tmp_path: Path) -> None:
    (tmp_path / "model.py").write_bytes(code)
    found = messages("model:x", tmp_path)
    assert found == [] if expected is None else len(found) == 1 and expected in found[0]
