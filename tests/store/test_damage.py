"""Damaged stores and checkpoints: one line, exit 3, and the file as it was; a resume goes on from what is sound.

``ABLATE_TEST_SOAK=1`` damages ten times as many places.
"""

from __future__ import annotations

import os
import random
import shutil
import sqlite3
from collections import Counter
from contextlib import closing
from pathlib import Path

import pytest
import torch

from ablate.train import checkpoint
from tests.command import Call

PLACES = 2000 if os.environ.get("ABLATE_TEST_SOAK") else 200
SEED = 20261121


def damaged(whole: bytes, rng: random.Random) -> bytes:
    """Flip a bit, overwrite some bytes, or cut the end off: what disks, copies and full file systems do."""
    place = rng.randrange(len(whole))
    while not whole[place]:
        place = rng.randrange(len(whole))  # most of a small store is empty pages
    data = bytearray(whole)
    match rng.randrange(5):
        case 0:
            return whole[:place]
        case 1:
            length = rng.choice((1, 16, 512, 4096))
            data[place : place + length] = rng.randbytes(len(data[place : place + length]))
        case 2:
            data[place : place + 512] = bytes(len(data[place : place + 512]))
        case _:
            data[place] ^= 1 << rng.randrange(8)
    return bytes(data)


@pytest.mark.slow
@pytest.mark.timeout(PLACES * 2)
def test_no_damage_of_a_store_ends_in_a_traceback(
    troubled: Path, tmp_path: Path, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ablate.run.doctor._installation", list)  # this machine is not what is looked at
    monkeypatch.setattr("ablate.run.doctor._devices", list)
    shutil.copytree(troubled, tmp_path / "copy")
    folder, path = tmp_path / "copy", tmp_path / "copy" / "runs" / "ablate.db"
    whole = path.read_bytes()
    rng = random.Random(SEED)
    ends: Counter[tuple[str, int]] = Counter()
    for number in range(PLACES):
        content = damaged(whole, rng)
        path.write_bytes(content)
        for arguments, codes in ((["report"], (0, 3)), (["status"], (0, 3)), (["doctor", "--verify"], (0, 4))):
            done = call(*arguments, cwd=folder)
            said = (
                f"damage {number} (seed {SEED}): {' '.join(arguments)}: {done.returncode}\n{done.stdout}{done.stderr}"
            )
            assert done.returncode in codes, said
            assert "Traceback" not in done.stdout + done.stderr, said
            if done.returncode == 3:
                assert done.stderr.count("error: ") == 1, said
            assert path.read_bytes() == content, said
            ends[arguments[0], done.returncode] += 1
    assert ends["report", 3] > PLACES / 10
    assert ends["doctor", 4] > ends["report", 3]


def test_text_that_sqlite_does_not_miss_is_missed_by_us(troubled: Path, tmp_path: Path, call: Call) -> None:
    shutil.copytree(troubled, tmp_path / "copy")
    path = tmp_path / "copy" / "runs" / "ablate.db"
    with closing(sqlite3.connect(path)) as file, file:
        file.execute("UPDATE study SET spec_json = substr(spec_json, 1, 50)")
    before = path.read_bytes()
    done = call("report", cwd=tmp_path / "copy")
    assert done.returncode == 3
    assert f"error: {path}: the store is damaged: " in done.stderr
    assert "hint: `ablate doctor --verify` lists all that is wrong; ablate leaves the file as it is" in done.stderr
    assert path.read_bytes() == before


def test_a_fault_of_ours_is_not_blamed_on_a_sound_store(
    troubled: Path, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise ValueError("ours")

    monkeypatch.setattr("ablate.analyse.analysis.analyse", broken)
    done = call("report", cwd=troubled)
    assert done.returncode == 70
    assert "a fault of ablate itself: ValueError: ours" in done.stderr


def test_an_empty_file_is_no_store_yet(project: Path, call: Call) -> None:
    (project / "runs").mkdir()
    (project / "runs" / "ablate.db").touch()
    assert "no store yet" in call("doctor", cwd=project).stdout


def state_of(number: int) -> dict[str, object]:
    generator = torch.Generator().manual_seed(number)
    return {"number": number, "weights": torch.rand(64, 16, generator=generator), "list": [1.5, None, "x"]}


def is_state(state: dict[str, object], number: int) -> bool:
    expected = state_of(number)
    weights, others = state.pop("weights"), expected.pop("weights")
    assert isinstance(weights, torch.Tensor)
    assert isinstance(others, torch.Tensor)
    return state == expected and torch.equal(weights, others)


def test_a_damaged_checkpoint_is_never_gone_on_from(tmp_path: Path) -> None:
    """The older one is, or none; and the next checkpoint is written and read whatever the folder holds."""
    sound = tmp_path / "sound"
    for number in (1, 2, 3):
        checkpoint.save(sound, state_of(number), [{"epoch": number}], fingerprint="f")
    files = sorted(path.name for path in sound.iterdir())
    assert files == ["2.pt", "3.pt", "manifest.json"]
    rng = random.Random(SEED)
    found: Counter[int | None] = Counter()
    for number in range(PLACES):
        folder = tmp_path / "damaged"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(sound, folder)
        hit = rng.sample(files, rng.choice((1, 1, 1, 2, 3)))
        for name in hit:
            (folder / name).write_bytes(damaged((sound / name).read_bytes(), rng))
        before = {path.name: path.read_bytes() for path in folder.iterdir()}
        saved = checkpoint.load(folder, fingerprint="f")
        which = saved["state"]["number"] if saved is not None else None
        said = f"damage {number} (seed {SEED}) of {hit}: {which}"
        assert saved is None or (which in (2, 3) and is_state(saved["state"], which)), said
        assert saved is None or saved["records"] == [{"epoch": which}], said
        if "manifest.json" not in hit:
            assert which == next((n for n in (3, 2) if f"{n}.pt" not in hit), None), said
        assert {path.name: path.read_bytes() for path in folder.iterdir()} == before, said
        found[which] += 1
        checkpoint.save(folder, state_of(9), [], fingerprint="f")
        saved = checkpoint.load(folder, fingerprint="f")
        assert saved is not None, said
        assert is_state(saved["state"], 9), said
    assert min(found[3], found[2], found[None]) > PLACES / 20, found


@pytest.mark.parametrize(
    "manifest",
    [
        "", "null", "{}", "[null]", "[[]]", "[1]", '[{"number": 1}]', '"x"', "[" * 100_000,
        '[{"number": 1, "file": "../../secret.pt", "bytes": 1, "sha256": "x"}]',
        '[{"number": 1, "file": "/etc/passwd", "bytes": 1, "sha256": "x"}]',
        '[{"number": "1", "file": "1.pt", "bytes": 1, "sha256": "x"}]',
    ],
    ids=range(12),
)  # fmt: skip
def test_a_manifest_that_makes_no_sense_is_as_none(tmp_path: Path, manifest: str) -> None:
    (tmp_path / "secret.pt").write_text("mine")
    folder = tmp_path / "a" / "checkpoint"
    folder.mkdir(parents=True)
    (folder / "manifest.json").write_text(manifest)
    assert checkpoint.load(folder, fingerprint="f") is None
    for number in (1, 2, 3):
        checkpoint.save(folder, state_of(number), [], fingerprint="f")
    saved = checkpoint.load(folder, fingerprint="f")
    assert saved is not None
    assert is_state(saved["state"], 3)
    assert (tmp_path / "secret.pt").read_text() == "mine"
