"""BaseNet against shapes and counts worked out by hand, and every one of its settings against a silent no-op."""

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from ablate.errors import AblateError
from ablate.train.classification import count_flops
from ablate.train.context import Context

sys.path.insert(0, str(Path(__file__).parents[2] / "studies"))
import basenet

BASELINE: dict[str, Any] = {
    "stem": 0,
    "widths": [6, 16],
    "kernel": 5,
    "padding": 0,
    "pool_after": [1, 2],
    "norm": "none",
    "convs": 1,
    "groups": 1,
    "residual": False,
    "residual_scale": 1.0,
    "hidden": 200,
    "hidden_norm": False,
    "output_norm": False,
}
BLOCKS = BASELINE | {"widths": [8, 8, 16], "kernel": 3, "padding": 1, "pool_after": [2]}
RESIDUAL = BLOCKS | {"convs": 2, "residual": True, "norm": "before_relu"}
TABULATED = RESIDUAL | {
    "stem": 64,
    "widths": [64] * 3 + [128] * 4 + [256] * 6 + [512] * 3,
    "pool_after": [16],
    "hidden": 50,
    "output_norm": True,
}


def build(model: dict[str, Any], *, channels: int = 3, size: int = 32, classes: int = 100) -> basenet.BaseNet:
    torch.manual_seed(0)
    return basenet.BaseNet(model, channels=channels, size=size, classes=classes)


def parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def kinds(module: nn.Module) -> list[str]:
    return [type(layer).__name__ for layer in module.children()]


def test_the_baseline_is_the_classic_course_net() -> None:
    net = build(BASELINE)
    conv1, conv2 = 5 * 5 * 3 * 6 + 6, 5 * 5 * 6 * 16 + 16
    # 32 → 28 → 14 → 10 → 5
    linear1, linear2 = 16 * 5 * 5 * 200 + 200, 200 * 100 + 100
    assert parameters(net) == conv1 + conv2 + linear1 + linear2 == 103_172
    assert kinds(net.body) == ["Block", "MaxPool2d", "Block", "MaxPool2d"]
    assert kinds(net.body[0].body) == ["Conv2d", "ReLU"]
    assert kinds(net.head) == ["Flatten", "Linear", "ReLU", "Linear"]
    assert net(torch.zeros(2, 3, 32, 32)).shape == (2, 100)


def test_the_tabulated_network_by_hand() -> None:
    net = build(TABULATED)

    def conv(kernel: int, inputs: int, outputs: int) -> int:
        return kernel * kernel * inputs * outputs + outputs

    expected = conv(3, 3, 64) + 2 * 64
    flops = 2 * 32 * 32 * 9 * 3 * 64
    inputs = 64
    for count, outputs in ((3, 64), (4, 128), (6, 256), (3, 512)):
        for _ in range(count):
            expected += conv(3, inputs, outputs) + conv(3, outputs, outputs) + 2 * (2 * outputs)
            flops += 2 * 32 * 32 * 9 * (inputs * outputs + outputs * outputs)
            if inputs != outputs:
                expected += conv(1, inputs, outputs)
                flops += 2 * 32 * 32 * inputs * outputs
            inputs = outputs
    expected += (512 * 16 * 16 * 50 + 50) + (50 * 100 + 100) + 2 * 100
    flops += 2 * (512 * 16 * 16 * 50 + 50 * 100)
    assert parameters(net) == expected == 27_842_662
    net = net.to("meta")
    assert count_flops(net, torch.zeros(1, 3, 32, 32, device="meta")) == flops
    assert flops / 1e9 == pytest.approx(43.55, abs=0.005)
    assert kinds(net.body) == ["Conv2d", "BatchNorm2d", "ReLU", *["Block"] * 16, "MaxPool2d"]
    assert kinds(net.body[3].body) == ["Conv2d", "BatchNorm2d", "ReLU"] * 2
    assert kinds(net.head) == ["Flatten", "Linear", "ReLU", "Linear", "BatchNorm1d"]
    shortcuts = [kinds_of.shortcut for kinds_of in net.body if isinstance(kinds_of, basenet.Block)]
    assert [isinstance(s, nn.Conv2d) for s in shortcuts].count(True) == 3


def test_where_the_norm_stands() -> None:
    assert kinds(build(BLOCKS | {"norm": "before_relu"}).body[0].body) == ["Conv2d", "BatchNorm2d", "ReLU"]
    assert kinds(build(BLOCKS | {"norm": "after_relu"}).body[0].body) == ["Conv2d", "ReLU", "BatchNorm2d"]
    head = build(BLOCKS | {"hidden_norm": True, "output_norm": True}).head
    assert kinds(head) == ["Flatten", "Linear", "BatchNorm1d", "ReLU", "Linear", "BatchNorm1d"]


def test_norm_and_residual_scale_leave_the_initial_draws_alone() -> None:
    plain, normed = build(BLOCKS), build(BLOCKS | {"norm": "before_relu"})
    assert torch.equal(plain.head[1].weight, normed.head[1].weight)
    one, scaled = build(RESIDUAL), build(RESIDUAL | {"residual_scale": 0.1})
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), scaled.parameters(), strict=True))


@pytest.mark.parametrize("scale", [1.0, 0.1, 0.0])
def test_a_residual_block_is_scaled_body_plus_shortcut(scale: float) -> None:
    net = build(RESIDUAL | {"residual_scale": scale}).eval()
    narrow, wide = net.body[1], net.body[3]
    x = torch.rand(2, 8, 16, 16)
    torch.testing.assert_close(narrow(x), scale * narrow.body(x) + x)
    torch.testing.assert_close(wide(x), scale * wide.body(x) + wide.shortcut(x))
    assert wide.shortcut.weight.shape == (16, 8, 1, 1)


def test_groups_go_where_they_divide() -> None:
    net = build(RESIDUAL | {"groups": 4, "stem": 8})
    convs = [layer for layer in net.body.modules() if isinstance(layer, nn.Conv2d)]
    assert [(c.in_channels, c.kernel_size[0], c.groups) for c in convs] == [
        (3, 3, 1),  # the stem sees the image
        *[(8, 3, 4)] * 5,
        (16, 3, 4),
        (8, 1, 1),  # the shortcut
    ]
    first = build(RESIDUAL | {"groups": 3, "widths": [6, 6], "pool_after": []}).body[0].body
    assert [layer.groups for layer in first if isinstance(layer, nn.Conv2d)] == [1, 3]
    grey = build(BLOCKS | {"groups": 2}, channels=1).body[0].body
    assert grey[0].groups == 1


@pytest.mark.parametrize(
    ("start", "changed"),
    [
        (BASELINE, {"stem": 8, "widths": [6, 16]}),
        (BASELINE, {"widths": [6, 17]}),
        (BASELINE, {"kernel": 3}),
        (BASELINE, {"padding": 1}),
        (BASELINE, {"pool_after": [1]}),
        (BASELINE, {"norm": "before_relu"}),
        (BASELINE | {"norm": "before_relu"}, {"norm": "after_relu"}),
        (BLOCKS, {"convs": 2}),
        (BLOCKS, {"groups": 2}),
        (BLOCKS, {"residual": True}),
        (RESIDUAL, {"residual_scale": 0.1}),
        (BASELINE, {"hidden": 100}),
        (BASELINE, {"hidden_norm": True}),
        (BASELINE, {"output_norm": True}),
    ],
)
def test_every_setting_changes_the_output(start: dict[str, Any], changed: dict[str, Any]) -> None:
    images = torch.rand(4, 3, 32, 32)
    assert not torch.equal(build(start)(images), build(start | changed)(images))


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (
            BASELINE | {"width": [3]},
            "error: unknown setting `model.width`\nhint: did you mean `model.widths`? the keys of `model` are: stem, "
            "widths, kernel, padding, pool_after, norm, convs, groups, residual, residual_scale, hidden, hidden_norm, "
            "output_norm",
        ),
        (BASELINE | {"widths": []}, "error: `model.widths` List should have at least 1 item"),
        (
            BASELINE | {"norm": "after"},
            "error: `model.norm` should be 'none', 'before_relu' or 'after_relu', not 'after'",
        ),
        (BASELINE | {"convs": 3}, "error: `model.convs` should be less than or equal to 2, not 3"),
        (
            BASELINE | {"pool_after": [1, 3]},
            "error: `model`: pool_after [1, 3] must name each block once, of 1 to 2",
        ),
        (
            BASELINE | {"pool_after": [2, 2]},
            "error: `model`: pool_after [2, 2] must name each block once, of 1 to 2",
        ),
        (
            BASELINE | {"residual": True},
            "error: `model`: a residual block needs padding (kernel - 1) / 2, not 0 of 5",
        ),
        (
            BASELINE | {"residual_scale": 0.1},
            "error: `model`: residual_scale 0.1 does nothing where residual is false",
        ),
        (
            BASELINE | {"groups": 7},
            "error: `model.groups: 7` divides the widths of no convolution, so it does nothing\n"
            "hint: choose a number that divides neighbouring `model.widths`",
        ),
        (
            BASELINE | {"widths": [4] * 4, "pool_after": [1, 2, 3, 4]},
            "error: nothing is left of the image after block 3 of `model.widths`\n"
            "hint: use fewer pools, a smaller kernel, more padding, or larger images (`data.size`)",
        ),
    ],
)
def test_settings_that_make_no_net_are_refused(model: dict[str, Any], message: str) -> None:
    with pytest.raises(AblateError) as failure:
        build(model)
    assert str(failure.value).startswith(message)


def test_the_task_trains_and_the_ladders_first_rungs_learn(tmp_path: Path) -> None:
    settings = {
        "model": BLOCKS | {"hidden": 32},
        "data": {"name": "digits", "split_seed": 0, "validation": 200},
        "augment": {"flip": False, "crop": 0},
        "normalise": True,
        "train": {"epochs": 3, "batch": 64, "lr": 0.05, "optimizer": "sgd", "momentum": 0.9},
    }
    metrics = basenet.train(settings, Context(seed=1, folder=tmp_path))
    assert metrics["test_acc"] > 80
    assert metrics["parameters"] == parameters(build(settings["model"], channels=1, size=8, classes=10))
