"""Weights from Keras's files: by a real Keras, and by files laid out as it does, sound and wrong."""

import importlib.util
import os
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from ablate.errors import AblateError, DataError
from ablate.train.context import Context
from tests.command import ablate
from tests.train.test_studies import FIFTY, NARROW_FIFTY, STUDIES, fifty, keras_count

sys.path.insert(0, str(STUDIES))
import keras_weights
import resnet50v2

SETTINGS = {
    "data": {"name": "digits", "split_seed": 0, "validation": 360, "subset": 32},
    "augment": {"flip": False, "crop": 0},
    "normalise": "constant",
    "train": {"epochs": 1, "batch": 16, "optimizer": "sgd", "lr": 1e-9},
}


@pytest.fixture(scope="module")
def from_keras(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what tests/train/keras_files.py writes."""
    for name in ("keras", "h5py"):
        if importlib.util.find_spec(name) is None:
            pytest.skip(f"{name} is not installed (pip install 'ablation-study[examples]')")
    folder = tmp_path_factory.mktemp("keras")
    environment = {**os.environ, "KERAS_BACKEND": "torch", "KERAS_HOME": str(folder / "home")}
    script = Path(__file__).with_name("keras_files.py")
    done = subprocess.run(
        [sys.executable, str(script), str(folder)], env=environment, capture_output=True, text=True, timeout=500
    )
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", ["legacy.h5", "backbone.weights.h5", "whole.keras"])
def test_the_features_are_those_of_keras(name: str, from_keras: Path) -> None:
    net = fifty(FIFTY).eval()
    answer = np.load(from_keras / "answer.npz")
    images = torch.from_numpy(answer["images"]).permute(0, 3, 1, 2).contiguous()
    expected = torch.from_numpy(answer["features"])
    assert expected.std() > 0.1, "features that a slip would show in"
    assert difference(net, images, expected) > 0.1
    keras_weights.load(net.backbone, from_keras / name)
    found = difference(net, images, expected)
    print(f"{name}: max |difference| {found:.2e}, features within {expected.min():.3g}…{expected.max():.3g}")
    assert found <= 1e-4


@torch.no_grad()
def difference(net: resnet50v2.TransferNet, images: Tensor, expected: Tensor) -> float:
    return (net.pool(net.backbone(net.upsampling(images))) - expected).abs().max().item()


# --- files laid out as Keras does ------------------------------------------------------------------------------------


def keras_arrays(backbone: nn.Module) -> dict[str, dict[str, Any]]:
    """The backbone's weights by Keras's names of layers and variables."""
    layers: dict[str, dict[str, Any]] = {}
    for path, layer in backbone.named_modules():
        names = {nn.Conv2d: keras_weights.CONV, nn.BatchNorm2d: keras_weights.NORM}.get(type(layer), {})
        for theirs, ours in names.items():
            if (value := getattr(layer, ours)) is not None:
                array = value.detach().numpy()
                layers.setdefault(path.replace(".", "_"), {})[theirs] = (
                    array.transpose(2, 3, 1, 0) if array.ndim == 4 else array
                )
    return layers


def write_legacy(path: Path, layers: dict[str, dict[str, Any]]) -> Path:
    h5py = pytest.importorskip("h5py", reason="h5py is not installed (pip install 'ablation-study[examples]')")
    with h5py.File(path, "w") as file:
        for layer, variables in layers.items():
            for name, array in variables.items():
                file[f"{layer}/{layer}/{name}:0"] = array
    return path


def write_numbered(path: Path, layers: dict[str, dict[str, Any]], *, named: bool = True) -> Path:
    h5py = pytest.importorskip("h5py", reason="h5py is not installed (pip install 'ablation-study[examples]')")
    with h5py.File(path, "w") as file:
        for number, (layer, variables) in enumerate(layers.items()):
            group = file.create_group(f"layers/layer_{number}/vars")
            if named:
                group.attrs["name"] = layer
            for place, array in enumerate(variables.values()):
                group[str(place)] = array
    return path


def random_net(model: dict[str, Any] = NARROW_FIFTY, *, channels: int = 3) -> resnet50v2.TransferNet:
    """A net no array of which is like another's, nor like a fresh net's."""
    net = fifty(model, channels=channels)
    generator = torch.Generator().manual_seed(5)
    for value in net.state_dict().values():
        if value.is_floating_point():
            value.copy_(torch.rand(value.shape, generator=generator))
    return net


@pytest.mark.parametrize("write", [write_legacy, write_numbered])
def test_every_array_finds_its_place(
    write: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, target, after = random_net(), fifty(NARROW_FIFTY), fifty(NARROW_FIFTY)
    head = {"predictions": {"kernel": np.ones((128, 10)), "bias": np.ones(10)}}
    file = write(tmp_path / "file.h5", keras_arrays(source.backbone) | head)
    keras_weights.load(target.backbone, file)
    assert not differing(target.backbone, source.backbone)
    assert differing(target, source) >= {"dense.weight", "norm.running_mean"}, "the head is left alone"

    assert keras_weights.main([str(file), str(tmp_path / "converted.pt")]) == 0
    assert f"{keras_count(source.backbone):,} parameters" in capsys.readouterr().out
    keras_weights.load(after.backbone, tmp_path / "converted.pt")
    assert not differing(after.backbone, source.backbone)


def test_keras_files_are_archives_of_one(tmp_path: Path) -> None:
    source, target = random_net(), fifty(NARROW_FIFTY)
    inner = write_numbered(tmp_path / "model.weights.h5", keras_arrays(source.backbone))
    with zipfile.ZipFile(tmp_path / "model.keras", "w") as archive:
        archive.write(inner, "model.weights.h5")
    keras_weights.load(target.backbone, tmp_path / "model.keras")
    assert not differing(target.backbone, source.backbone)


def differing(one: nn.Module, other: nn.Module) -> set[str]:
    theirs = other.state_dict()
    return {name for name, value in one.state_dict().items() if not torch.equal(value, theirs[name])}


def test_a_trial_begins_with_the_weights_of_its_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a rate near 0 a trial measures what its file holds; the path counts from the data folder."""
    monkeypatch.setenv("ABLATE_DATA", str(tmp_path))
    model = NARROW_FIFTY | {"frozen": True, "dropout": 0.0}
    source = random_net(model, channels=1)
    torch.save(source.backbone.state_dict(), tmp_path / "some.pt")

    def losses(weights: str) -> tuple[float, dict[str, str]]:
        (tmp_path / "trial").mkdir(exist_ok=True)
        context = Context(seed=1, folder=tmp_path / "trial")
        measured = resnet50v2.train(SETTINGS | {"model": model | {"weights": weights}}, context)
        return measured["val_loss"], context.facts

    given, facts = losses("some.pt")
    assert facts["weights_sha256"] == keras_weights.sha256(tmp_path / "some.pt")
    drawn, without = losses("none")
    assert "weights_sha256" not in without
    assert given != drawn
    assert losses(str(tmp_path / "some.pt"))[0] == given, "an absolute path is taken as it is"


# --- files that are wrong --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda layers: layers.pop("conv3_block2_1_bn"), "it has no `conv3_block2.1_bn.weight` (4 such differences)"),
        (lambda layers: layers["post_bn"].pop("moving_mean"), "it has no `post_bn.running_mean`\n"),
        (
            lambda layers: layers.update(conv3_block3_1_bn=layers["conv3_block2_1_bn"]),
            "it has `conv3_block3.1_bn.bias`, which the network has not (4 such differences)",
        ),
        (
            lambda layers: layers.update(conv1_conv={"kernel": np.ones((7, 7, 1, 4)), "bias": np.ones(4)}),
            "it has `conv1_conv.weight` of shape [4, 1, 7, 7], the network's is [4, 3, 7, 7]\n",
        ),
        (
            lambda layers: layers.update(conv1_conv={"kernel": np.ones((7, 7, 3, 4), "uint16"), "bias": np.ones(4)}),
            "`conv1_conv` holds uint16, not floats\nhint: save it as float32",
        ),
        (lambda layers: layers.clear(), "names no layer of a ResNet V2\n"),
    ],
)
def test_another_networks_weights_are_refused_whole(
    spoil: Callable[[dict[str, Any]], object], message: str, tmp_path: Path
) -> None:
    layers = keras_arrays(random_net().backbone)
    spoil(layers)
    net, fresh = fifty(NARROW_FIFTY), fifty(NARROW_FIFTY)
    with pytest.raises(AblateError) as failure:
        keras_weights.load(net.backbone, write_legacy(tmp_path / "file.h5", layers))
    assert message in str(failure.value)
    assert not differing(net, fresh)


def test_files_of_an_older_keras_have_no_names(tmp_path: Path) -> None:
    file = write_numbered(tmp_path / "file.weights.h5", keras_arrays(random_net().backbone), named=False)
    with pytest.raises(AblateError, match=r"Keras before 3\.6 writes no names"):
        keras_weights.read(file)


def test_two_layers_of_one_name_are_refused(tmp_path: Path) -> None:
    h5py = pytest.importorskip("h5py", reason="h5py is not installed (pip install 'ablation-study[examples]')")
    file = write_legacy(tmp_path / "file.h5", keras_arrays(random_net().backbone))
    with h5py.File(file, "a") as opened:
        opened.copy("post_bn", opened.create_group("second"))
    with pytest.raises(AblateError, match="has two layers `post_bn`\nhint: save the ResNet alone"):
        keras_weights.read(file)


@pytest.mark.parametrize("name", ["damaged.h5", "damaged.keras", "damaged.pt", "missing.pt"])
def test_a_file_that_cannot_be_read(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if name.endswith(".h5"):
        pytest.importorskip("h5py", reason="h5py is not installed (pip install 'ablation-study[examples]')")
    if name.startswith("damaged"):
        (tmp_path / name).write_bytes(b"<html>404 not found</html>")
    with pytest.raises(DataError, match=r"can't be read as weights: .+\nhint: a \.h5 or \.keras file of Keras"):
        keras_weights.read(tmp_path / name)
    assert keras_weights.main([str(tmp_path / name), str(tmp_path / "out.pt")]) == 4
    said = capsys.readouterr()
    assert said.out == ""
    assert "can't be read" in said.err
    assert not (tmp_path / "out.pt").exists()


def test_a_pickle_that_would_run_code_is_not_loaded(tmp_path: Path) -> None:
    class Harm:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (tmp_path / "harm",)

    torch.save({"post_bn.weight": Harm()}, tmp_path / "file.pt")
    with pytest.raises(DataError):
        keras_weights.read(tmp_path / "file.pt")
    torch.save([torch.ones(3)], tmp_path / "list.pt")
    with pytest.raises(AblateError, match="is no state dict"):
        keras_weights.read(tmp_path / "list.pt")
    assert not (tmp_path / "harm").exists()


def test_missing_weights_are_said_in_one_line_and_nothing_is_downloaded(project: Path, tmp_path: Path) -> None:
    study = str(STUDIES / "resnet50v2.yaml")
    options = ["--only", "baseline", "--seeds", "1", "--set", "resources.gpus=0", "--set", "execution.dtype=float32"]
    done = ablate("run", study, *options, cwd=project, ABLATE_DATA=str(tmp_path / "data"))
    assert done.returncode == 4, done.stderr
    name = "resnet50v2_weights_tf_dim_ordering_tf_kernels_notop.h5"
    assert f"there is no file {tmp_path / 'data' / name}, which `model.weights` names" in done.stderr
    assert "hint: put it there (Keras publishes its own at https://" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "data").exists(), "not even CIFAR-100 was begun with"


def test_h5py_that_is_missing_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "h5py", None)
    (tmp_path / "file.h5").touch()
    with pytest.raises(AblateError, match=r"read by h5py, which is not installed\nhint: pip install '.*\[keras\]'"):
        keras_weights.read(tmp_path / "file.h5")


def test_the_converter_says_how_it_is_called(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert keras_weights.main([]) == 2
    assert capsys.readouterr().err == "usage: keras_weights.py KERAS_FILE TO.pt\n"
    assert keras_weights.main([str(tmp_path / "a.h5"), str(tmp_path / "b.h5")]) == 2
    assert "should end in .pt" in capsys.readouterr().err
