"""ResNets and dynamic convolutions: shapes and counts by hand, no silent setting, and they can learn.

Their ``quick`` profiles run by one command each; whole, that takes minutes, which .ci/run has, so here each arm is
trained for two epochs of one seed, on few images.
"""

import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from ablate.errors import AblateError
from tests.command import ablate

sys.path.insert(0, str(Path(__file__).parents[2] / "studies"))
import dynamicconv
import resnet9
import resnet32
import resnet50v2

STUDIES = Path(__file__).parents[2] / "studies"

NINE = {"widths": [64, 128, 256, 512, 1028], "residual": True}
THIRTY_TWO = {"stem": 1, "depth": 32, "widths": [16, 32, 64]}
DYNAMIC = {"widths": [64, 128, 256], "blocks": 2, "branches": 4, "kernel": 3, "dropout": 0.5, "outputs": None}
FIFTY = {
    "upsample": 7, "blocks": [3, 4, 6, 3], "widths": [64, 128, 256, 512], "weights": "none", "frozen": False,
    "backbone_activation": "relu", "dropout": 0.25, "hidden": 256, "activation": "relu", "norm_momentum": 0.01,
}  # fmt: skip
NARROW_NINE = NINE | {"widths": [8, 16, 32, 64, 128]}
NARROW_DYNAMIC = DYNAMIC | {"widths": [8, 16, 32]}
NARROW_FIFTY = FIFTY | {"upsample": 2, "blocks": [1, 2, 1, 1], "widths": [4, 8, 16, 32], "hidden": 32}


def nine(model: dict[str, Any], *, channels: int = 3, size: int = 32, classes: int = 100) -> nn.Module:
    torch.manual_seed(0)
    return resnet9.ResNet9(model, channels=channels, size=size, classes=classes)


def thirty_two(model: dict[str, Any], *, channels: int = 3, classes: int = 10) -> nn.Module:
    torch.manual_seed(0)
    return resnet32.CifarResNet(model, channels=channels, classes=classes)


def dynamic(model: dict[str, Any], *, channels: int = 3, size: int = 32, classes: int = 10) -> nn.Module:
    torch.manual_seed(0)
    return dynamicconv.DynamicConvNet(model, channels=channels, size=size, classes=classes)


def fifty(model: dict[str, Any], *, channels: int = 3, classes: int = 10) -> resnet50v2.TransferNet:
    torch.manual_seed(0)
    return resnet50v2.TransferNet(model, channels=channels, classes=classes)


Build = Callable[[dict[str, Any]], nn.Module]
NETS: list[tuple[Build, dict[str, Any]]] = [
    (nine, NARROW_NINE), (thirty_two, THIRTY_TWO), (fifty, NARROW_FIFTY), (dynamic, NARROW_DYNAMIC),
]  # fmt: skip


def parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def conv(kernel: int, inputs: int, outputs: int, *, bias: bool = True) -> int:
    """A convolution and the BatchNorm after it."""
    return kernel * kernel * inputs * outputs + bias * outputs + 2 * outputs


def linear(inputs: int, outputs: int) -> int:
    return inputs * outputs + outputs


# --- counts and shapes by hand -----------------------------------------------------------------------------------


def test_resnet9_by_hand() -> None:
    net = nine(NINE)
    convs = [(3, 64), (64, 128), (128, 128), (128, 128), (128, 256), (256, 512), (512, 512), (512, 512)]
    convs += [(512, 1028), (1028, 1028), (1028, 1028)]
    assert parameters(net) == sum(conv(3, *each) for each in convs) + linear(1028, 100) == 30_441_528
    assert parameters(nine(NINE | {"residual": False})) == parameters(net), "a residual adds what is there already"
    sizes = shapes_within(net, torch.zeros(2, 3, 32, 32))
    assert sizes == [
        (64, 32), (128, 16), (128, 16), (256, 8), (512, 4), (512, 4), (1028, 2), (1028, 2), (1028, 1), (1028,), (100,)
    ]  # fmt: skip
    assert nine(NARROW_NINE, size=64)(torch.zeros(2, 3, 64, 64)).shape == (2, 100)


@pytest.mark.parametrize(
    ("depth", "stem", "count"), [(32, 1, 466_522), (32, 3, 464_154 + 2_752), (20, 3, 269_722 + 2_752)]
)
def test_resnets_by_hand(depth: int, stem: int, count: int) -> None:
    """With shortcuts that have no weights, as in He et al., 32 layers have 464,154 and 20 have 269,722."""
    net = thirty_two(THIRTY_TWO | {"depth": depth, "stem": stem})
    blocks = (depth - 2) // 6
    expected = conv(stem, 3, 16, bias=False) + linear(64, 10)
    for inputs, outputs in ((16, 16), (16, 32), (32, 64)):
        expected += conv(3, inputs, outputs, bias=False) + (2 * blocks - 1) * conv(3, outputs, outputs, bias=False)
        if inputs != outputs:
            expected += conv(1, inputs, outputs, bias=False)
    assert parameters(net) == expected == count
    assert sum(isinstance(layer, (nn.Conv2d, nn.Linear)) for layer in net.modules()) == depth + 2, "two shortcuts"
    sizes = shapes_within(net, torch.zeros(2, 3, 32, 32))
    assert sizes[:3] == [(16, 32)] * 3
    assert sizes[3:-3] == [(16, 32)] * blocks + [(32, 16)] * blocks + [(64, 8)] * blocks
    assert sizes[-3:] == [(64, 1), (64,), (10,)]


def test_resnet50v2_has_the_four_counts_of_the_write_up() -> None:
    """They count BatchNorm's running statistics, as Keras does."""
    net = fifty(FIFTY, classes=100)
    counts = {name: keras_count(layer) for name, layer in net.named_children()}
    assert {name: count for name, count in counts.items() if count} == {
        "backbone": 23_564_800, "dense": 524_544, "norm": 1_024, "logits": 25_700
    }  # fmt: skip
    sizes = shapes_within(net, torch.zeros(2, 3, 32, 32))
    assert sizes == [(3, 224), (2048, 7), (2048,), (2048,), (256,), (256,), (256,), (100,)]
    sizes = shapes_within(net.backbone, torch.zeros(1, 3, 224, 224))
    assert sizes[:3] == [(64, 112), (64, 114), (64, 56)]
    assert sizes[3:6] == [(256, 56), (256, 56), (256, 28)], "V2 halves the map in the last block of a stack"
    assert sizes[6:10] == [(512, 28)] * 3 + [(512, 14)]
    assert sizes[10:16] == [(1024, 14)] * 5 + [(1024, 7)]
    assert sizes[16:] == [(2048, 7)] * 5, "the last stack keeps its map"


def keras_count(layer: nn.Module) -> int:
    return sum(value.numel() for name, value in layer.state_dict().items() if not name.endswith("num_batches_tracked"))


@pytest.mark.parametrize(("branches", "kernel"), [(1, 3), (2, 3), (4, 3), (4, 1), (4, 5)])
def test_dynamic_convolutions_by_hand(branches: int, kernel: int) -> None:
    net = dynamic(DYNAMIC | {"branches": branches, "kernel": kernel})
    expected = linear(256, 512) + linear(512, 10)
    for inputs, outputs in ((3, 64), (64, 64), (64, 128), (128, 128), (128, 256), (256, 256)):
        expected += branches * conv(kernel, inputs, outputs)
        if branches > 1:
            expected += linear(inputs, branches)
    assert parameters(net) == expected
    assert (branches, kernel) != (4, 3) or expected == 4_728_110
    sizes = shapes_within(net, torch.zeros(2, 3, 32, 32))
    assert sizes[:8] == [(64, 32), (64, 32), (64, 16), (128, 16), (128, 16), (128, 8), (256, 8), (256, 8)]
    assert sizes[8:] == [(256, 1), (256,), (512,), (512,), (512,), (10,)]


def shapes_within(net: nn.Module, images: Tensor) -> list[tuple[int, ...]]:
    """Return (channels, size), or (features,), after each layer of a sequence."""
    found = []
    with torch.no_grad():
        for layer in net.eval().children():
            images = layer(images)
            assert images.dim() == 2 or images.shape[2] == images.shape[3]
            found.append(tuple(images.shape[1:3]))
    return found


# --- what the layers compute -------------------------------------------------------------------------------------


def test_a_pair_adds_its_input_where_it_is_residual() -> None:
    x = torch.rand(2, 16, 16, 16)
    residual, plain = (nine(NARROW_NINE | {"residual": each}).eval()[2] for each in (True, False))
    torch.testing.assert_close(residual(x), residual.body(x) + x)
    assert torch.equal(plain(x), plain.body(x))
    assert torch.equal(residual.body(x), plain.body(x)), "both arms begin from the same draws"


def test_a_resnet_block_adds_its_shortcut_before_the_last_relu() -> None:
    net = thirty_two(THIRTY_TWO | {"depth": 14}).eval()
    same, halved = net[3], net[5]
    x = torch.randn(2, 16, 8, 8)
    torch.testing.assert_close(same(x), torch.relu(same.body(x) + x))
    torch.testing.assert_close(halved(x), torch.relu(halved.body(x) + halved.shortcut(x)))
    assert halved(x).shape == (2, 32, 4, 4)
    assert halved.shortcut[0].weight.shape == (32, 16, 1, 1)


def test_a_dynamic_convolution_is_its_branches_weighed_for_each_image() -> None:
    block = dynamic(NARROW_DYNAMIC).eval()[1]
    x = torch.randn(3, 8, 6, 6)
    scores = x.mean(dim=(2, 3)) @ block.weigh[2].weight.T + block.weigh[2].bias
    weights = scores.exp() / scores.exp().sum(dim=1, keepdim=True)
    assert weights.shape == (3, 4)
    assert not torch.allclose(weights[0], weights[1], atol=1e-4)
    for image in range(3):
        alone = x[image : image + 1]
        expected = sum(
            weights[image, k] * torch.relu(branch[1](branch[0](alone))) for k, branch in enumerate(block.branches)
        )
        torch.testing.assert_close(block(x)[image : image + 1], expected)


def test_one_branch_is_a_plain_convolution() -> None:
    block = dynamic(NARROW_DYNAMIC | {"branches": 1}).eval()[0]
    x = torch.randn(3, 3, 6, 6)
    (branch,) = block.branches
    assert torch.equal(block(x), torch.relu(branch[1](branch[0](x))))


def test_a_preactivated_block_by_hand() -> None:
    backbone = fifty(FIFTY | {"widths": [4, 8, 16, 32]}).eval().backbone
    backbone.apply(lambda layer: isinstance(layer, nn.BatchNorm2d) and layer.running_mean.normal_())
    first, second, last = (backbone.get_submodule(f"conv2_block{number}") for number in (1, 2, 3))

    def branch(block: nn.Module, a: Tensor) -> Tensor:
        for number in (1, 2):
            a = torch.relu(block[f"{number}_bn"](block[f"{number}_conv"](a)))
        return block["3_conv"](a)

    x = torch.randn(2, 4, 8, 8)
    a = torch.relu(first["preact_bn"](x))
    torch.testing.assert_close(first(x), branch(first, a) + first["0_conv"](a))
    x = torch.randn(2, 16, 8, 8)
    torch.testing.assert_close(second(x), branch(second, torch.relu(second["preact_bn"](x))) + x)
    expected = branch(last, torch.relu(last["preact_bn"](x))) + x[:, :, ::2, ::2]
    torch.testing.assert_close(last(x), expected)
    assert last(x).shape == (2, 16, 4, 4)


def test_a_frozen_backbone_stays_as_it_is() -> None:
    images = torch.rand(8, 3, 16, 16)
    for frozen in (True, False):
        net = fifty(NARROW_FIFTY | {"frozen": frozen}).train()
        before = {name: value.clone() for name, value in net.state_dict().items()}
        optimizer = torch.optim.SGD([p for p in net.parameters() if p.requires_grad], lr=0.1)
        cross_entropy(net(images), torch.arange(8)).backward()
        optimizer.step()
        changed = {name for name, value in net.state_dict().items() if not torch.equal(value, before[name])}
        assert any(name.startswith("backbone") for name in changed) is not frozen
        assert {"dense.weight", "norm.running_mean", "logits.bias"} <= changed
        assert "backbone.post_bn.running_mean" in changed or frozen


def test_norm_momentum_is_the_share_of_a_batch_everywhere() -> None:
    net = fifty(NARROW_FIFTY | {"norm_momentum": 0.25, "dropout": 0.0}).train()
    images = torch.rand(8, 3, 16, 16)
    net(images)
    maps = net.backbone.conv1_conv(net.upsampling(images))
    maps = net.backbone.pool1_pool(net.backbone.pool1_pad(maps))
    first = net.backbone.get_submodule("conv2_block1.preact_bn")
    torch.testing.assert_close(first.running_mean, 0.25 * maps.mean(dim=(0, 2, 3)))
    norms = [layer for layer in net.modules() if isinstance(layer, (nn.BatchNorm1d, nn.BatchNorm2d))]
    assert {layer.momentum for layer in norms} == {0.25}
    assert {layer.eps for layer in norms} == {1.001e-5, 1e-3}, "Keras's: of its ResNets, and of the layer"


@pytest.mark.parametrize(
    ("build", "start", "changed"),
    [
        (nine, NARROW_NINE, {"widths": [8, 16, 32, 64, 64]}),
        (nine, NARROW_NINE, {"residual": False}),
        (thirty_two, THIRTY_TWO, {"stem": 3}),
        (thirty_two, THIRTY_TWO, {"depth": 20}),
        (thirty_two, THIRTY_TWO, {"widths": [16, 32, 48]}),
        (fifty, NARROW_FIFTY, {"upsample": 1}),
        (fifty, NARROW_FIFTY, {"blocks": [1, 1, 1, 1]}),
        (fifty, NARROW_FIFTY, {"widths": [4, 8, 16, 24]}),
        (fifty, NARROW_FIFTY, {"frozen": True}),
        (fifty, NARROW_FIFTY, {"backbone_activation": "leaky-relu"}),
        (fifty, NARROW_FIFTY, {"dropout": 0.0}),
        (fifty, NARROW_FIFTY, {"hidden": 16}),
        (fifty, NARROW_FIFTY, {"activation": "leaky-relu"}),
        (fifty, NARROW_FIFTY, {"activation": "sigmoid"}),
        (dynamic, NARROW_DYNAMIC, {"widths": [8, 16, 24]}),
        (dynamic, NARROW_DYNAMIC, {"blocks": 1}),
        (dynamic, NARROW_DYNAMIC, {"branches": 3}),
        (dynamic, NARROW_DYNAMIC, {"branches": 1}),
        (dynamic, NARROW_DYNAMIC, {"kernel": 5}),
        (dynamic, NARROW_DYNAMIC, {"dropout": 0.0}),
        (dynamic, NARROW_DYNAMIC, {"outputs": 20}),
    ],
)
def test_every_setting_changes_the_output(build: Build, start: dict[str, Any], changed: dict[str, Any]) -> None:
    images = torch.rand(4, 3, 32, 32)
    assert not torch.equal(build(start)(images), build(start | changed)(images))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: nine(NARROW_NINE, size=16),
            "error: five pools leave nothing of an image of 16×16 pixels\nhint: set `data.size` to 32 or more",
        ),
        (
            lambda: nine(NARROW_NINE | {"widths": [8, 16]}),
            "error: `model.widths` List should have at least 5 items",
        ),
        (lambda: thirty_two(THIRTY_TWO | {"depth": 33}), "error: `model`: depth 33 is not 6n + 2; 32 and 38 are"),
        (lambda: thirty_two(THIRTY_TWO | {"stem": 2}), "error: `model.stem` should be 1 or 3, not 2"),
        (lambda: fifty(FIFTY | {"blocks": [3, 4, 6]}), "error: `model.blocks` List should have at least 4 items"),
        (lambda: fifty(FIFTY | {"activation": "tanh"}), "error: `model.activation` should be 'relu', 'leaky-relu' or"),
        (
            lambda: dynamic(NARROW_DYNAMIC | {"kernel": 4}),
            "error: `model`: kernel 4 is even: with padding kernel // 2 the image would grow",
        ),
        (
            lambda: dynamic(NARROW_DYNAMIC | {"outputs": 9}),
            "error: `model.outputs: 9` are fewer than the 10 classes",
        ),
        (
            lambda: dynamic(NARROW_DYNAMIC | {"widths": [8] * 5}, size=8),
            "error: 5 segments leave nothing of an image of 8×8 pixels\n"
            "hint: use fewer `model.widths` or larger images (`data.size`)",
        ),
    ],
)
def test_settings_that_make_no_net_are_refused(make: Callable[[], nn.Module], message: str) -> None:
    with pytest.raises(AblateError) as failure:
        make()
    assert str(failure.value).startswith(message)


# --- they learn --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("build", "model"), NETS, ids=["resnet9", "resnet32", "resnet50v2", "dynamicconv"])
def test_32_random_images_are_learnt_by_heart(build: Build, model: dict[str, Any]) -> None:
    """The loss falls below a tenth of its start within 200 iterations; narrow nets, without dropout."""
    net = build(model | ({"dropout": 0.0} if "dropout" in model else {}))
    generator = torch.Generator().manual_seed(1)
    images, labels = torch.randn(32, 3, 32, 32, generator=generator), torch.arange(32) % 10
    optimizer = torch.optim.Adam(net.parameters(), lr=0.003)
    losses: list[float] = []
    while len(losses) < 200 and (not losses or losses[-1] >= losses[0] / 10):
        loss = cross_entropy(net(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 10, f"{len(losses)} iterations: {losses[0]:.2f} → {losses[-1]:.2f}"


@pytest.mark.slow
@pytest.mark.parametrize(("name", "arms"), [("resnet9", 9), ("resnet32", 8), ("resnet50v2", 13), ("dynamicconv", 9)])
def test_the_quick_profile_gives_a_table(name: str, arms: int, project: Path) -> None:
    options = ["--seeds", "1", "--set", "data.subset=256", "--set", "train.epochs=2"]
    done = ablate("run", str(STUDIES / f"{name}.yaml"), "--profile", "quick", *options, cwd=project, timeout=280)
    assert done.returncode == 0, done.stderr
    assert "bit-identical" not in done.stderr, "a step that changes nothing"
    shown = ablate("report", "--markdown", cwd=project).stdout
    rows = re.findall(r"^\| \d+ \|.*\|$", shown, re.MULTILINE)
    assert len(rows) == arms
    assert all(re.search(r"\| 1 \| \d+", row) for row in rows), f"each has its one seed and a figure:\n{shown}"
    assert "| published" not in shown, "the published figures are of another data set"
    assert f"{arms} trials planned = {arms} finished" in shown
    assert "Assumed, " in shown


@pytest.mark.slow
def test_the_quick_transfer_gives_both_tables(project: Path) -> None:
    options = ["--seeds", "1", "--set", "data.subset=160", "--set", "train.epochs=3"]
    done = ablate("run", str(STUDIES / "transfer.yaml"), "--profile", "quick", *options, cwd=project, timeout=280)
    assert done.returncode == 0, done.stderr
    assert "bit-identical" not in done.stderr, "a step that changes nothing"
    shown = ablate("report", "--markdown", cwd=project).stdout
    for design, trials in (("one-at-a-time", 7), ("factorial", 8)):
        table = shown.partition(f"### transfer@quick: {design}")[2].partition("###")[0]
        rows = re.findall(r"^\| \d+ \|.*\|$", table, re.MULTILINE)
        assert len(rows) == 7, f"a baseline and six steps, or seven effects of three:\n{shown}"
        assert f"{trials} trials planned = {trials} finished" in table
    assert "| published" not in shown, "the published figures are of another data set"
    assert "Assumed, " in shown
