"""Every place where ablate writes has a failpoint, or stands here with the reason why it needs none."""

from __future__ import annotations

import ast

import pytest

from tests.failpoints.source import failpoints, sources, unguarded

# (file, function): why it needs no failpoint
EXEMPT = {
    ("ablate/cli.py", "_drop_output"): "opens /dev/null",
    ("ablate/completion.py", "_rows"): "opens the store to be read",
    ("ablate/failpoints.py", "_is_first"): "the mark that a failpoint was met",
    ("ablate/run/workers.py", "_command"): "a pipe",
    ("ablate/store/integrity.py", "_schema_flaws"): "a database in memory, to compare with",
    ("ablate/train/context.py", "__init__"): "the temporary folder of a task called in a notebook",
    ("ablate/train/scores.py", "write"): "into memory; `write_whole` takes it to the disk",
    ("ablate/train/process.py", "_set_back"): "a counter of the kernel's",
    ("ablate/train/process.py", "after"): "a pipe",
    ("ablate/train/server.py", "_reply"): "a pipe",
    ("ablate/train/server.py", "obey"): "a pipe",
}


def test_every_write_has_a_failpoint() -> None:
    found = [write for file, tree in sources().items() for write in unguarded(file, tree)]
    assert EXEMPT.keys() <= {(write.file, write.function) for write in found}, "an exemption that nobody needs"
    bare = [str(write) for write in found if (write.file, write.function) not in EXEMPT]
    assert bare == [], "\n".join(["a write without a failpoint:", *bare])


def test_there_are_at_least_forty() -> None:
    assert len(failpoints(sources())) >= 40


@pytest.mark.parametrize(
    "line",
    [
        "open(path, 'w')", "open(path, mode='ab')", "path.open('wb')", "path.open('r+')", "path.write_text('x')",
        "path.write_bytes(b'')", "os.open(path, os.O_RDWR | os.O_CREAT)", "os.open(path, flags | os.O_WRONLY)",
        "os.replace(a, b)", "path.rename(b)", "os.write(1, b'')", "os.pwrite(log, more, at)", "os.ftruncate(log, 0)",
        "path.mkdir()", "path.unlink(missing_ok=True)", "shutil.rmtree(path)", "shutil.copy2(a, b)",
        "torch.save(x, file)", "np.savez(file, a=a)", "frame.to_csv(path)", "engine.begin()", "sqlite3.connect(path)",
        "tempfile.mkdtemp()", "storage.create_new_trial(1)", "[f(each) for each in path.unlink()]",
        "run(lambda: path.touch())",
    ],
)  # fmt: skip
def test_a_write_without_one_is_found(line: str) -> None:
    source = f"def save(path):\n    x = 1\n    {line}\n"
    found = list(unguarded("some.py", ast.parse(source)))
    assert [(write.line, write.function) for write in found] == [(3, "save")]
    assert str(found[0]).startswith("some.py:3: ")
    guarded = source.replace("x = 1", "failpoint('save')")
    assert list(unguarded("some.py", ast.parse(guarded))) == []


@pytest.mark.parametrize(
    "line",
    [
        "open(path)", "path.open('rb')", "os.open(path, os.O_RDONLY)", "text.replace('a', 'b')", "replace(ending, x=1)",
        "file.write(data)", "names.remove(1)", "values.copy()", "self.engine.dispose()", "line.truncate(3)",
    ],
)  # fmt: skip
def test_what_only_reads_needs_none(line: str) -> None:
    assert list(unguarded("some.py", ast.parse(f"def look(path):\n    {line}\n"))) == []


def test_names_are_found_through_helpers() -> None:
    source = """
def whole(path, *, what):
    failpoint(f"{what}-begun")
def json(path, *, what):
    whole(path, what=what)
def user():
    json(1, what="result")
    whole(2, what="scores")
    failpoint("own")
class Store:
    def _transaction(self, work):
        failpoint(f"{name}-committed")
def finish(store):
    def work(connection): ...
    store.write(work)
def _create(connection): ...
def open_store(store):
    store.write(_create)
"""
    expected = ["create-committed", "finish-committed", "own", "result-begun", "scores-begun"]
    assert failpoints({"some.py": ast.parse(source)}) == expected
