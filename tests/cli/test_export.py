"""`ablate export`: what each tool's own reader finds is what the store holds, once, and nothing leaves the machine."""

from __future__ import annotations

import hashlib
import json
import math
import os
import select
import shutil
import socket
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ablate.export.records import records_of
from tests.command import Call, ablate, query
from tests.numbers import NUMBERS
from tests.truth import STUDY, WAITING, fill, truth_study

# in plan order; `two` seed 2 diverged with nothing but its NaN, `three` seed 2 failed
NAMES = ["baseline/seed-1", "baseline/seed-2", "two/seed-1", "two/seed-2", "three/seed-1", "three/seed-2"]
LEVELS = {"baseline": 1, "two": 2, "three": 3}
Values = dict[tuple[str, int | None], float]


def stored(project: Path) -> dict[str, Values]:
    """Return what the store holds of each trial by metric and epoch; None is the end."""
    found: dict[str, Values] = {name: {} for name in NAMES}
    rows = query(
        project,
        NUMBERS
        + """SELECT a.name || '/seed-' || r.seed, m.metric, m.epoch, m.value FROM replicate r JOIN arm a ON a.id = r.arm
           JOIN trial t ON t.id = r.trial JOIN number m ON m.trial = t.id AND m.claim = t.result_claim""",
    )
    for name, metric, epoch, value in rows:
        found[name][metric, epoch] = math.nan if value is None else value
    assert len(found["two/seed-1"]) == 4, "three epochs and the end"
    return found


def as_stored(scalars: Mapping[str, list[tuple[int, float]]]) -> Values:
    """Return curves by tag as the store would hold them."""
    return {
        (tag.removeprefix("final/"), None if tag.startswith("final/") else step): value
        for tag, points in scalars.items()
        for step, value in points
    }


def same(found: Values, expected: Values) -> bool:
    return found.keys() == expected.keys() and all(
        value == expected[key] or (math.isnan(value) and math.isnan(expected[key])) for key, value in found.items()
    )


def content(folder: Path) -> dict[str, str]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


# --- TensorBoard


@pytest.fixture(scope="module")
def board(troubled: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("tensorboard")
    folder = tmp_path_factory.mktemp("board")
    done = ablate("export", "toy", "--tensorboard", str(folder), cwd=troubled)
    assert (done.returncode, done.stdout) == (0, f"tensorboard --logdir {folder}/toy\n"), done.stderr
    assert done.stderr == f"toy: 6 trials in {folder}\n"
    return folder


def test_tensorboard_reads_the_numbers_of_the_store(troubled: Path, board: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for name, expected in stored(troubled).items():
        events = EventAccumulator(str(board / "toy" / name)).Reload()
        tags = events.Tags()["scalars"]
        found = as_stored({tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in tags})
        assert same(found, {key: float(np.float32(value)) for key, value in expected.items()}), name
        text = events.Tensors("ablate")[0].tensor_proto.string_val[0].decode()
        arm, seed = name.split("/seed-")
        assert f"| `arm` | `{arm}` |" in text
        assert f"| `seed` | `{seed}` |" in text
        assert "| `fingerprint` | `" in text
        assert "| `torch` | `" in text


def test_the_hparams_page_has_a_row_for_every_trial(troubled: Path, board: Path) -> None:
    """Asked as the page asks: through the plugin's own backend."""
    from tensorboard.backend.event_processing import data_provider, plugin_event_multiplexer
    from tensorboard.context import RequestContext
    from tensorboard.plugins.base_plugin import TBContext
    from tensorboard.plugins.hparams import api_pb2, backend_context, get_experiment, list_session_groups

    runs = plugin_event_multiplexer.EventMultiplexer().AddRunsFromDirectory(str(board / "toy"))
    runs.Reload()
    context = backend_context.Context(TBContext(data_provider=data_provider.MultiplexerDataProvider(runs, "toy")))
    experiment = get_experiment.Handler(RequestContext(), context, "", api_pb2.GetExperimentRequest()).run()
    assert [each.name for each in experiment.hparam_infos] == ["arm", "level", "seed"]
    assert [each.name.tag for each in experiment.metric_infos] == ["final/acc"]
    request = api_pb2.ListSessionGroupsRequest(
        start_index=0,
        slice_size=100,
        allowed_statuses=list(api_pb2.Status.values()),
        col_params=[api_pb2.ColParams(metric=each.name) for each in experiment.metric_infos],
    )
    groups = list_session_groups.Handler(RequestContext(), context, "", request).run().session_groups
    expected = stored(troubled)
    found = {
        f"{each.hparams['arm'].string_value}/seed-{each.hparams['seed'].number_value:.0f}": each for each in groups
    }
    assert found.keys() == set(NAMES)
    for name, group in found.items():
        (session,) = group.sessions
        assert session.status == (api_pb2.STATUS_FAILURE if name == "three/seed-2" else api_pb2.STATUS_SUCCESS)
        assert group.hparams["level"].number_value == LEVELS[name.split("/")[0]]
        values = {metric.name.tag: metric.value for metric in session.metric_values}
        for (metric, _), value in [item for item in expected[name].items() if item[0][1] is None]:
            assert values[f"final/{metric}"] == pytest.approx(value, rel=1e-6, nan_ok=True)


def test_exporting_twice_gives_the_same_bytes(troubled: Path, board: Path, call: Call) -> None:
    before = content(board)
    assert len(before) == len(NAMES) + 1
    assert call("export", "--tensorboard", str(board), cwd=troubled).returncode == 0
    assert content(board) == before


def test_event_files_of_the_task_come_along_and_links_do_not(troubled: Path, tmp_path: Path, call: Call) -> None:
    pytest.importorskip("tensorboard")
    shutil.copytree(troubled, tmp_path / "copy", symlinks=True)
    sql = """SELECT folder FROM attempt a JOIN replicate r ON r.trial = a.trial JOIN arm ON arm.id = r.arm
             WHERE arm.name = 'two' AND r.seed = 1"""
    own = tmp_path / "copy" / "runs" / query(troubled, sql)[0][0] / "tensorboard"
    own.mkdir()
    (own / "events.out.tfevents.1.host").write_bytes(b"written by the task")
    (own / "events.out.tfevents.2.link").symlink_to("/etc/passwd")
    other = next(path for path in sorted(own.parent.parent.parent.glob("*/1")) if path != own.parent)
    (other / "tensorboard").symlink_to(own)  # a link to a folder
    assert call("export", "--tensorboard", "out", cwd=tmp_path / "copy").returncode == 0
    copies = (tmp_path / "copy" / "out").rglob("own/*")
    assert {(str(path.relative_to(tmp_path / "copy" / "out")), path.read_bytes()) for path in copies} == {
        ("toy/two/seed-1/own/events.out.tfevents.1.host", b"written by the task")
    }


# --- MLflow


@pytest.fixture(scope="module")
def database(troubled: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs that an export wrote which was killed at its third run, and then done again."""
    pytest.importorskip("mlflow")
    folder = tmp_path_factory.mktemp("mlflow")
    killed = ablate("export", "--mlflow", str(folder), cwd=troubled, ABLATE_FAILPOINT="export-mlflow-run:kill@3")
    assert killed.returncode == -9, killed.stderr
    done = ablate("export", "--mlflow", str(folder), cwd=troubled)
    assert (done.returncode, done.stdout) == (0, f"mlflow ui --backend-store-uri sqlite:///{folder}/mlflow.db\n")
    assert done.stderr == f"study last run: toy\ntoy: 6 trials in {folder}\n"
    return folder


def runs_in(folder: Path) -> dict[str, Any]:
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=f"sqlite:///{folder}/mlflow.db")
    experiment = client.get_experiment_by_name("toy")
    assert experiment is not None
    return {run.info.run_name: (client, run) for run in client.search_runs([experiment.experiment_id])}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # MLflow's own
def test_mlflow_reads_the_numbers_of_the_store(troubled: Path, database: Path) -> None:
    found = runs_in(database)
    assert len(found) == len(NAMES)
    for name, expected in stored(troubled).items():
        client, run = found[name]
        history = {metric: client.get_metric_history(run.info.run_id, metric) for metric in run.data.metrics}
        curves = {tag: [(point.step, point.value) for point in points] for tag, points in history.items()}
        assert same(as_stored(curves), expected), name
        arm, seed = name.split("/seed-")
        assert (run.data.tags["arm"], run.data.tags["seed"]) == (arm, seed)
        assert run.data.params == {"level": str(LEVELS[arm]), "epochs": "3",
                                   "pause": "0.0", "extra": "0"}  # fmt: skip
        assert run.info.status == ("FAILED" if name == "three/seed-2" else "FINISHED")
        assert len(run.data.tags["ablate.fingerprint"]) > 20
        assert run.data.tags["ablate.torch"]
    assert found["two/seed-2"][1].data.tags["outcome"] == "diverged"
    assert "no good, said" in found["three/seed-2"][1].data.tags["reason"].replace("\x1b[31m ", "")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # MLflow's own
def test_a_run_of_mlflow_is_written_once(troubled: Path, database: Path) -> None:
    before = {name: run.info.run_id for name, (_, run) in runs_in(database).items()}
    assert ablate("export", "--mlflow", str(database), cwd=troubled).returncode == 0
    assert {name: run.info.run_id for name, (_, run) in runs_in(database).items()} == before


# --- Weights & Biases


@pytest.fixture(scope="module")
def offline(troubled: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Offline runs of an export that was killed and done again, with all roads to the network led to a listener."""
    pytest.importorskip("wandb")
    folder = tmp_path_factory.mktemp("wandb")
    home = {"HOME": str(folder), "XDG_CONFIG_HOME": str(folder), "XDG_CACHE_HOME": str(folder)}
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        roads = dict.fromkeys(("WANDB_BASE_URL", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "https_proxy"), url)
        roads["WANDB_API_KEY"] = "0" * 40
        words = ("export", "--wandb", str(folder))
        killed = ablate(*words, cwd=troubled, ABLATE_FAILPOINT="export-wandb-run:kill@3", **home, **roads)
        assert killed.returncode == -9, killed.stderr
        done = ablate(*words, cwd=troubled, **home, **roads)
        assert select.select([listener], [], [], 0)[0] == [], "somebody called"
    assert (done.returncode, done.stdout) == (0, f"wandb sync {folder}/wandb/offline-run-*\n"), done.stderr
    assert done.stderr == f"study last run: toy\ntoy: 6 trials in {folder}\n"
    return folder


def wandb_records(folder: Path) -> Iterator[list[Any]]:
    """Yield what each run file holds, as wandb's own messages; wandb comes without a reader of its files for Python."""
    from wandb.proto.wandb_internal_pb2 import Record

    for path in sorted(folder.glob("wandb/offline-run-*/*.wandb")):
        yield [Record.FromString(data) for data in logged(path.read_bytes())]


def logged(data: bytes) -> Iterator[bytes]:
    """Yield the records of a log as LevelDB writes it: blocks of 32 KiB, pieces with a header of 7."""
    at, whole = 7, b""
    assert data.startswith(b":W&B")
    while at + 7 <= len(data):
        if (left := 32768 - at % 32768) < 7:
            at += left
            continue
        size, kind = int.from_bytes(data[at + 4 : at + 6], "little"), data[at + 6]
        whole += data[at + 7 : at + 7 + size]
        at += 7 + size
        if kind in (1, 4):  # whole, or its last piece
            yield whole
            whole = b""


def items(entries: Any) -> dict[str, Any]:
    return {each.key or "/".join(each.nested_key): json.loads(each.value_json) for each in entries}


def test_wandb_reads_the_numbers_of_the_store(troubled: Path, offline: Path) -> None:
    expected = stored(troubled)
    names = []
    for records in wandb_records(offline):
        (run,) = [each.run for each in records if each.HasField("run")]
        config, curves = items(run.config.update), defaultdict(list)
        for each in records:
            if each.HasField("history"):
                row = items(each.history.item)
                for key in row.keys() & {"acc", "final/acc"}:
                    curves[key].append((row["_step"], row[key]))
        name = run.display_name
        assert same(as_stored(curves), expected[name]), name
        names.append(name)
        assert run.project == "toy"
        assert (config["ablate/arm"], config["ablate/seed"]) == (run.run_group, int(name[-1]))
        assert config["level"] == LEVELS[run.run_group]
        assert config["ablate/fingerprint"]
        (end,) = [each.exit.exit_code for each in records if each.HasField("exit")]
        assert end == (1 if name == "three/seed-2" else 0)
    assert sorted(names) == sorted(NAMES)


def test_a_run_of_wandb_is_written_once(troubled: Path, offline: Path) -> None:
    before = content(offline / "wandb")
    assert ablate("export", "--wandb", str(offline), cwd=troubled, HOME=str(offline)).returncode == 0
    assert content(offline / "wandb") == before


# --- what all have in common


def test_candidates_and_confirming_seeds_have_names_of_their_own(tmp_path: Path) -> None:
    tuned = truth_study(
        steps=STUDY["steps"][:1], seeds=2, tune={"train.lr": {"low": 0.01, "high": 1.0, "log": True}}, budget=3
    )
    filled = fill(tmp_path, tuned)
    records = records_of(filled.store, filled.stored)
    names = [record.name for record in records]
    assert len(names) == len(set(names)) == 2 * (3 + 2)
    assert "batchnorm/tune-seed-1000001/candidate-3" in names
    assert len({record.key for record in records}) == len(records)
    assert len({record.settings["train.lr"] for record in records}) == 3
    assert all("train.lr" in record.varied for record in records)


def test_a_store_from_elsewhere_names_no_folder(project: Path, call: Call) -> None:
    filled = fill(project / "runs", truth_study(steps=[], seeds=1))
    filled.store.write(lambda connection: connection.exec_driver_sql("UPDATE study SET profile = '../../elsewhere'"))
    done = call("export", "--tensorboard", "out", cwd=project)
    assert done.returncode == 3
    assert "a study is called what no study can be: 'basenet@../../elsewhere'" in done.stderr
    assert not (project / "out").exists()


@pytest.mark.parametrize("library", ["tensorboard", "mlflow", "wandb"])
def test_without_the_library_the_export_says_what_to_install(troubled: Path, tmp_path: Path, library: str) -> None:
    code = f"import sys; sys.modules['{library}'] = None; from ablate.cli import main; main()"
    command = [sys.executable, "-c", code, "export", "toy", f"--{library}", str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=troubled, timeout=60, check=False)
    assert done.returncode == 2
    assert done.stderr == (
        f"error: the export needs {library}, which is not installed\nhint: pip install 'ablation-study[{library}]'\n"
    )
    assert not (tmp_path / "out").exists()


def test_an_export_says_what_it_lacks(project: Path, troubled: Path, call: Call) -> None:
    said = call("export", cwd=troubled).stderr
    assert said.startswith("error: name what to write: --tensorboard DIR, --mlflow DIR or --wandb DIR\n")
    waiting = {(arm, seed): WAITING for arm in ("baseline", "batchnorm") for seed in (1, 2)}
    filled = fill(project / "runs", truth_study(steps=STUDY["steps"][:1], seeds=2), waiting)
    done = call("export", "--tensorboard", "out", cwd=project)
    assert done.returncode == 2
    assert f"error: no trial of `{filled.stored.title}` is finished\n" in done.stderr
    (project / "file").write_text("")
    assert call("export", "--tensorboard", "file", cwd=project).returncode == 2
    assert os.listdir(project / "runs")


@pytest.mark.parametrize("library", ["tensorboard", "mlflow", "wandb"])
def test_a_folder_that_can_not_be_is_said_in_a_line(project: Path, troubled: Path, call: Call, library: str) -> None:
    pytest.importorskip(library)
    file = project / "file"
    file.write_text("kept")
    done = call("export", "toy", f"--{library}", str(file / "in-it"), cwd=troubled)
    assert done.returncode == 4
    assert done.stderr.startswith(f"error: {file}/in-it")
    assert done.stderr.endswith(": the runs can't be written: Not a directory\nhint: name a folder that can be\n")
    assert file.read_text() == "kept"


def test_a_file_that_is_no_database_is_left_as_it_is(project: Path, troubled: Path) -> None:
    pytest.importorskip("mlflow")
    (project / "mlflow.db").write_text("notes, and no database")
    done = ablate("export", "toy", "--mlflow", str(project), cwd=troubled)
    assert done.returncode == 4
    assert done.stderr == f"error: {project}/mlflow.db: it is no SQLite database\nhint: name another folder\n"
    assert (project / "mlflow.db").read_text() == "notes, and no database"
