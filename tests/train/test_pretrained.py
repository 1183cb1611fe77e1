"""Pretrained weights: of a name, a file, an address; and frozen networks, whose features are computed once."""

import hashlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision import models

from ablate import plan_study, read_study
from ablate.errors import AblateError, DataError
from ablate.train import pretrained
from ablate.train.augment import AugmentSettings
from ablate.train.classification import train_classifier
from ablate.train.context import Context
from ablate.train.data import ImageData, Images, load, mean_and_std
from ablate.train.frozen import Frozen
from ablate.train.pretrained import backbone, load_weights, provide, weights_file, without_head
from tests.loopback import Server, serving

sys.path.insert(0, str(Path(__file__).parents[2] / "studies"))
import transfer


@pytest.fixture(autouse=True)
def torch_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty home for torch's checkpoints, and the folder of them."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    return tmp_path / "torch" / "hub" / "checkpoints"


@pytest.fixture
def context(tmp_path: Path) -> Context:
    return Context(seed=1, folder=tmp_path / "attempt")


def says(expected: type[AblateError], call: Any) -> str:
    with pytest.raises(expected) as failure:
        call()
    text = str(failure.value)
    assert text.count("\n") <= 1, "a line and a hint"
    return text


# --- networks and files ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "features"), [("resnet18", 512), ("mobilenet_v3_small", 1024), ("squeezenet1_0", 0)])
def test_the_last_layer_is_left_out(name: str, features: int, context: Context) -> None:
    if not features:
        assert "has no linear layer" in says(AblateError, lambda: backbone(name, None, context))
        return
    torch.manual_seed(0)
    net, found = backbone(name, None, context)
    torch.manual_seed(0)
    whole = models.get_model(name, weights=None)
    x = torch.randn(2, 3, 64, 64)
    assert net.eval()(x).shape == (2, features) == (2, found)
    *_, last = [layer for layer in whole.modules() if isinstance(layer, nn.Linear)]
    with torch.no_grad():
        assert torch.equal(last(net(x)), whole.eval()(x)), "the same draws, and the same network below its last layer"
    assert context.facts == {}


def test_a_file_of_weights_makes_the_network_that_was_saved(
    context: Context, data_home: Path, torch_home: Path
) -> None:
    saved = models.resnet18(num_classes=7)
    for folder, name in ((data_home, "seven.pth"), (torch_home, "hub.pt")):
        folder.mkdir(parents=True)
        torch.save(saved.state_dict(), folder / name)
    x = torch.randn(2, 3, 64, 64)
    saved.fc = nn.Identity()
    for name in ("seven.pth", "hub.pt", str(data_home / "seven.pth")):
        net, _ = backbone("resnet18", name, context)
        with torch.no_grad():
            assert torch.equal(net.eval()(x), saved.eval()(x))
        assert context.facts["weights_sha256"] == hashlib.sha256(weights_file(name).read_bytes()).hexdigest()


def test_a_package_may_ship_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shipped = tmp_path / "site-packages" / "flowers" / "net.pth"
    shipped.parent.mkdir(parents=True)
    shipped.write_bytes(b"")
    monkeypatch.setattr(sys, "path", [str(tmp_path / "site-packages"), str(tmp_path)])
    assert weights_file("flowers/net.pth") == shipped


class Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return (Path("evil-was-here").touch, ())


def test_wrong_files_are_refused_in_a_line(context: Context, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "net.pth"

    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))

    def said() -> str:
        return says(DataError, lambda: load_weights(net, path, context))

    text = says(DataError, lambda: backbone("resnet18", str(path), context))
    assert text.startswith(f"error: there is no file of weights {path}")
    text = says(DataError, lambda: backbone("resnet18", "net.pth", context))
    assert "looked for in" in text
    assert "checkpoints" in text
    assert "is not a file of weights that can be read safely: [Errno 2]" in said()
    path.write_bytes(b"no weights")
    assert "is not a file of weights that can be read safely" in said()
    torch.save({"evil": Evil()}, path)
    assert "is not a file of weights that can be read safely" in said()
    assert not (tmp_path / "evil-was-here").exists()
    torch.save({"epoch": 3}, path)
    assert "holds no state dict" in said()
    assert context.facts == {}, "what was not read is not noted"
    state = net.state_dict()
    torch.save(state | {"2.weight": state["0.weight"], "2.bias": state["0.bias"], "3.weight": state["0.bias"]}, path)
    assert said().endswith("holds the weights of another network: 3 of no use (2.weight, 2.bias …)")
    torch.save({name: value for name, value in state.items() if name != "1.running_mean"}, path)
    assert "1 missing (1.running_mean …)" in said()
    torch.save(state | {"0.weight": torch.zeros(4, 1, 3, 3)}, path)
    assert "1 of another shape (0.weight …)" in said()
    older = {name: value + 1 for name, value in state.items() if "num_batches_tracked" not in name}
    torch.save(older, path)
    load_weights(net, path, context)
    assert all(torch.equal(net.state_dict()[name], value) for name, value in older.items())
    assert context.facts == {"weights_sha256": hashlib.sha256(path.read_bytes()).hexdigest()}


def test_names_that_are_not_known_are_guessed_at(context: Context) -> None:
    text = says(AblateError, lambda: backbone("resnet81", None, context))
    assert text.startswith("error: torchvision has no network `resnet81`\nhint: did you mean `resnet18`?")
    text = says(AblateError, lambda: backbone("resnet18", "IMAGENET1K_V9", context))
    assert "no weights `IMAGENET1K_V9`\nhint: there are: IMAGENET1K_V1, DEFAULT" in text
    assert "no weights `ResNet50_Weights.IMAGENET1K_V1`" in says(
        AblateError, lambda: backbone("resnet18", "ResNet50_Weights.IMAGENET1K_V1", context)
    )


# --- downloads ---------------------------------------------------------------------------------------------------


@pytest.fixture
def server() -> Iterator[Server]:
    with serving() as server:
        yield server


def test_weights_are_downloaded_once_and_checked_at_every_reading(server: Server, torch_home: Path) -> None:
    content = b"as published"
    name = f"net-{hashlib.sha256(content).hexdigest()[:8]}.pth"
    server.files[name] = content
    url = f"{server.url}/{name}"
    assert provide(url, torch_home).read_bytes() == content
    assert provide(url, torch_home) == torch_home / name
    assert server.asked == [f"/{name}"]
    (torch_home / name).write_bytes(b"rotten")
    text = says(DataError, lambda: provide(url, torch_home))
    assert f"{torch_home / name} is damaged: its SHA-256 begins with " in text


def test_what_was_not_published_is_not_kept(server: Server, torch_home: Path) -> None:
    server.files["net-01234567.pth"] = b"something else"
    text = says(DataError, lambda: provide(f"{server.url}/net-01234567.pth", torch_home))
    assert "the weights net-01234567.pth are not in" in text
    assert "invalid hash value" in text
    assert [path.name for path in torch_home.iterdir()] == [".ablate.lock"]
    assert "HTTP Error 404" in says(DataError, lambda: provide(f"{server.url}/none-01234567.pth", torch_home))


def test_offline_the_error_says_which_file_belongs_where(
    context: Context, torch_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pretrained.torch.hub, "download_url_to_file", lambda url, *_, **__: nobody(url))

    def nobody(url: str) -> None:
        assert url == "https://download.pytorch.org/models/resnet18-f37072fd.pth"
        torch.hub.urlopen("http://127.0.0.1:1/")

    text = says(DataError, lambda: backbone("resnet18", "ResNet18_Weights.IMAGENET1K_V1", context))
    assert text.startswith(
        f"error: the weights resnet18-f37072fd.pth are not in {torch_home}, and downloading https://"
    )
    assert "Connection refused\nhint: fetch https://download.pytorch.org/models/resnet18-f37072fd.pth elsewhere" in text


# --- timm --------------------------------------------------------------------------------------------------------


def test_without_timm_the_error_names_the_extra(context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    text = says(AblateError, lambda: backbone("timm/resnet18", None, context))
    assert text == "error: `timm/resnet18` needs timm, which is not installed\nhint: pip install 'ablation-study[timm]'"


def test_networks_of_timm(context: Context, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    timm = pytest.importorskip("timm")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    whole = timm.create_model("resnet10t", num_classes=7)
    torch.save(whole.state_dict(), tmp_path / "ten.pth")
    net, features = backbone("timm/resnet10t", str(tmp_path / "ten.pth"), context)
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(whole.fc(net.eval()(x)), whole.eval()(x))
    assert (features, net(x).shape) == (512, (2, 512))
    assert "has no weights `best`" in says(AblateError, lambda: backbone("timm/resnet10t", "best", context))
    assert "timm can't make `nonet`" in says(DataError, lambda: backbone("timm/nonet", None, context))


# --- frozen ------------------------------------------------------------------------------------------------------


SETTINGS: dict[str, Any] = {
    "data": {"name": "digits", "split_seed": 0, "validation": 96, "subset": 160, "size": 16},
    "augment": {"flip": True, "crop": 0},
    "normalise": True,
    "train": {"epochs": 2, "batch": 32, "lr": 0.01, "optimizer": "adam"},
}


def training(folder: Path, settings: dict[str, Any], *, frozen: bool = True) -> tuple[dict[str, float], nn.Module]:
    built: list[nn.Module] = []
    context = Context(seed=1, folder=folder)

    def build(data: ImageData) -> nn.Module:
        net, features = transfer.small(data.channels)
        head = nn.Sequential(nn.Dropout(0.2), nn.Linear(features, data.classes))
        built.append(nn.Sequential(Frozen(net) if frozen else net, head))
        return built[0]

    metrics = train_classifier(settings, context, build)
    return {k: v for k, v in metrics.items() if k not in ("train_seconds", "images_per_s", "peak_memory_mb")}, built[0]


@pytest.mark.parametrize("flip", [False, True])
def test_cached_features_change_no_bit(flip: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Dropout in the head too: a frozen network draws nothing, so that both see the same noise."""
    settings = SETTINGS | {"augment": {"flip": flip, "crop": 0}}
    calls: list[int] = []
    forward = Frozen.forward

    def counted(self: Frozen, x: Tensor) -> Tensor:
        calls.append(len(x))
        return forward(self, x)

    monkeypatch.setattr(Frozen, "forward", counted)
    cached, net = training(tmp_path / "cached", settings)
    images = 160 * (1 + flip) + 96 + 360
    assert sum(calls) == images + 1, "every image and view once, and one to count the FLOPs"
    calls.clear()
    monkeypatch.setattr(AugmentSettings, "views", None)
    plain, same = training(tmp_path / "plain", settings)
    assert sum(calls) == 2 * 160 + 2 * 96 + 360 + 1
    assert cached == plain
    for one, two in zip(net.state_dict().values(), same.state_dict().values(), strict=True):
        assert torch.equal(one, two)


def test_a_frozen_network_keeps_its_weights_and_its_statistics(tmp_path: Path) -> None:
    shown = SETTINGS | {"augment": {"flip": True, "crop": 1}}
    weights = []
    for frozen in (True, False):
        metrics, net = training(tmp_path / str(frozen), shown, frozen=frozen)
        body = net[0].net if frozen else net[0]
        torch.manual_seed(Context(seed=1, folder=tmp_path).generator("init").initial_seed())
        fresh, _ = transfer.small(1)
        weights.append(
            [torch.equal(a, b) for a, b in zip(body.state_dict().values(), fresh.state_dict().values(), strict=True)]
        )
        assert metrics["parameters"] == 32 * 10 + 10 + (0 if frozen else sum(p.numel() for p in fresh.parameters()))
    assert all(weights[0]), "running means included"
    assert not any(weights[1])


def test_a_frozen_trial_resumes_to_the_same_bits(tmp_path: Path) -> None:
    whole, _ = training(tmp_path / "whole", SETTINGS)
    first = Context(seed=1, folder=tmp_path / "first")

    def build(data: ImageData) -> nn.Module:
        body, features = transfer.small(data.channels)
        return nn.Sequential(Frozen(body), nn.Sequential(nn.Dropout(0.2), nn.Linear(features, data.classes)))

    train_classifier(SETTINGS, first, build)
    again = Context(seed=1, folder=tmp_path / "again", earlier=[str(tmp_path / "first")])
    found = train_classifier(SETTINGS, again, build)
    assert again.resumed_from == "first"
    assert {name: found[name] for name in whole} == whole
    kept = max((tmp_path / "first").rglob("*.pt"), key=lambda path: path.stat().st_mtime).stat().st_size
    assert kept < 50_000, "no frozen weight is kept"


# --- the study's networks ----------------------------------------------------------------------------------------


def shaped(*, channels: int = 3, classes: int = 10) -> ImageData:
    """Return data of a shape, with an image of each class."""
    labels = torch.arange(classes)
    part = Images(torch.randint(0, 256, (classes, channels, 32, 32), dtype=torch.uint8), labels)
    mean, std = mean_and_std(part.images)
    return ImageData(part, part, classes, channels, 32, mean, std, lambda: part)


def test_half_of_the_classes_are_known_before(context: Context) -> None:
    """The features of a network that has seen five digits tell all ten apart better than random ones."""
    data = load({"name": "digits", "split_seed": 0, "validation": 300, "subset": 600, "size": 16})
    found = []
    for weights in (None, "half"):
        settings = SETTINGS | {"train": SETTINGS["train"] | {"epochs": 5}, "augment": {"flip": False, "crop": 0}}
        model = {"backbone": "small", "weights": weights, "frozen": True}
        found.append(transfer.train(settings | {"model": model}, Context(seed=1))["val_acc"])
        torch.manual_seed(7)
        one = transfer.transfer(model, context, data).state_dict()
        torch.manual_seed(7)
        two = transfer.transfer(model | {"frozen": False}, context, data).state_dict()
        assert all(torch.equal(a, b) for a, b in zip(one.values(), two.values(), strict=True)), "equal in both arms"
    assert found[1] > found[0] + 10


def test_transfer_by_hand(context: Context) -> None:
    def built(**model: Any) -> nn.Module:
        torch.manual_seed(0)
        return transfer.transfer({"frozen": False, **model}, context, shaped(classes=200))

    resnet = built(backbone="resnet18")
    assert sum(p.numel() for p in resnet.parameters()) == 11_689_512 - (512 * 1000 + 1000) + (512 * 200 + 200)
    frozen = built(backbone="resnet18", frozen=True)
    assert sum(p.numel() for p in frozen.parameters() if p.requires_grad) == 512 * 200 + 200
    assert torch.equal(frozen[1].weight, resnet[1].weight), "both arms begin with the same last layer"
    lite = built(backbone="efficientnet-lite0", outputs=1000)
    assert sum(p.numel() for p in lite.parameters()) == 4_652_008, "as published, with 1,000 classes"
    assert lite(torch.zeros(2, 3, 70, 70)).shape == (2, 1000)
    assert "are fewer than the 200 classes" in says(AblateError, lambda: built(backbone="resnet18", outputs=100))
    assert "`small` has no weights" in says(AblateError, lambda: built(backbone="small", weights="x"))
    with pytest.raises(AblateError, match="takes images of 3 channels, not of 1"):
        transfer.transfer({"backbone": "resnet18", "frozen": True}, context, shaped(channels=1))


def test_published_figures_are_of_arms_of_the_study() -> None:
    study = read_study(Path(transfer.__file__).with_suffix(".yaml"))
    assert study.reference is not None
    named = {arm for figures in study.reference.values.values() for arm in figures}
    assert named == {"baseline", "only-whole"} <= {arm.name for arm in plan_study(study).arms}


def test_padding_is_that_of_tensorflow() -> None:
    """A 3×3 kernel with stride 2 begins at the first pixel of an even size, and one before it of an odd size."""
    conv = transfer.SameConv(1, 1, 3, 2, bias=False)
    nn.init.zeros_(conv.weight)
    conv.weight.data[0, 0, 0, 0] = 1  # its upper left corner
    for size, first in ((6, 0), (7, None)):
        image = torch.arange(1.0, size * size + 1).view(1, 1, size, size)
        padded = image if first == 0 else nn.functional.pad(image, [1, 1, 1, 1])
        assert torch.equal(conv(image)[0, 0], padded[0, 0, 0 : size - 1 + 1 : 2, 0 : size - 1 + 1 : 2])


def test_lite_weights_load_by_their_published_names(context: Context, tmp_path: Path) -> None:
    net = transfer.EfficientNetLite0()
    names = list(net.state_dict())
    assert names[0] == "_conv_stem.weight"
    assert "_blocks.0._depthwise_conv.weight" in names
    assert "_blocks.15._project_conv.weight" in names
    torch.save({**net.state_dict(), "_fc.weight": torch.zeros(9), "_fc.bias": torch.zeros(9)}, tmp_path / "lite.pth")
    again = transfer.EfficientNetLite0()
    load_weights(again, tmp_path / "lite.pth", context)
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(again.eval()(x), net.eval()(x))


@pytest.mark.parametrize("name", ["resnet18", "efficientnet-lite0", "small"])
def test_32_random_images_are_learnt_by_heart(name: str, context: Context) -> None:
    torch.manual_seed(0)
    net = transfer.transfer({"backbone": name, "frozen": False}, context, shaped())
    generator = torch.Generator().manual_seed(1)
    images, labels = torch.randn(32, 3, 32, 32, generator=generator), torch.arange(32) % 10
    optimizer = torch.optim.Adam(net.parameters(), lr=0.01 if name == "small" else 0.003)
    losses: list[float] = []
    while len(losses) < 200 and (not losses or losses[-1] >= losses[0] / 10):
        loss = nn.functional.cross_entropy(net(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 10, f"{len(losses)} iterations: {losses[0]:.2f} → {losses[-1]:.2f}"


def test_without_head_takes_the_last_linear_layer() -> None:
    net, features = without_head(nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Sequential(nn.Linear(5, 6))))
    assert features == 5
    assert net(torch.zeros(1, 4)).shape == (1, 5)
