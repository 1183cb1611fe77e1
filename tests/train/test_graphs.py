"""`execution: {graphs: true}`: iterations that are captured once and replayed are those of the plain loop.

A CPU has no CUDA graphs. ``Recorded`` stands in for one: it notes each operation with the tensors that it reads and
writes, undoes what that has changed, and replays the operations on the same tensors, without any Python. So what a real
graph would not see, it does not see either: another rate, another batch, a tensor that has been replaced.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ablate.errors import AblateError
from ablate.train import classification, graphs, together
from ablate.train.classification import TrainSettings, build_optimizer, set_rate, train_classifier
from ablate.train.context import Context, Interrupted
from ablate.train.data import ImageData
from ablate.train.graphs import WARM_UP, Replayed
from ablate.train.together import Asked, train_together

TRAIN = {"epochs": 3, "batch": 64, "lr": 0.1, "optimizer": "sgd", "momentum": 0.9}
SETTINGS: dict[str, Any] = {
    "data": {"name": "digits", "split_seed": 0, "validation": 100, "subset": 300},  # 4 batches of 64, and one of 44
    "augment": {"flip": True, "crop": 1},
    "normalise": True,
}
ADAM = {"optimizer": "adam", "momentum": None, "lr": 0.01}
WAYS: dict[str, dict[str, Any]] = {
    "sgd": {"schedule": "cosine", "weight_decay": 0.01},
    "adam": ADAM | {"schedule": "step", "step_epochs": 1, "step_factor": 0.5},
    "adamw": ADAM | {"optimizer": "adamw", "schedule": "one-cycle", "label_smoothing": 0.1, "weight_decay": 0.01},
    "plateau": {"lr": 3.0, "schedule": "plateau", "plateau_epochs": 1, "plateau_factor": 0.5, "keep": "best"},
}
UNREPEATED = {"train_seconds", "images_per_s", "peak_memory_mb"}

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device: there are no CUDA graphs")


class Recorded(TorchDispatchMode):
    """Operations and their tensors, replayed as a CUDA graph would."""

    def __init__(self) -> None:
        super().__init__()
        self.said: list[str] = []
        self._operations: list[tuple[Any, Any, Any, Any]] = []
        self._before: dict[int, tuple[Tensor, Tensor]] = {}
        self._made: set[int] = set()

    def warm_up(self, work: Callable[[], None]) -> None:
        self.said.append("warm up")
        work()

    def capture(self, work: Callable[[], None]) -> None:
        self.said.append("capture")
        state = torch.get_rng_state()
        with self:
            work()
        with torch.no_grad():
            for tensor, before in self._before.values():
                tensor.untyped_storage().copy_(before.untyped_storage())
        torch.set_rng_state(state)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        for tensor in _tensors((args, kwargs)):
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in self._made | self._before.keys():
                copy = torch.empty(0)
                copy.untyped_storage().resize_(storage.nbytes()).copy_(storage)
                self._before[storage.data_ptr()] = tensor.detach(), copy
        out = func(*args, **kwargs)
        self._operations.append((func, args, kwargs, out))  # which holds its tensors: no address is used twice
        self._made |= {each.untyped_storage().data_ptr() for each in _tensors(out)} - self._before.keys()
        return out

    def replay(self) -> None:
        self.said.append("replay")
        with torch.no_grad():
            for func, args, kwargs, out in self._operations:
                again = func(*args, **kwargs)
                for former, tensor in zip(_tensors(out), _tensors(again), strict=True):
                    if former.data_ptr() != tensor.data_ptr():
                        former.copy_(tensor)


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> list[Recorded]:
    """What was captured in a test, in order."""
    made: list[Recorded] = []

    def make() -> Recorded:
        made.append(Recorded())
        return made[-1]

    monkeypatch.setitem(graphs.CAPTURES, "cpu", make)
    return made


def net(data: ImageData) -> nn.Module:
    width = 4 * (data.size // 2) ** 2
    return nn.Sequential(
        nn.Conv2d(data.channels, 4, 3, padding=1, bias=False),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(width, data.classes),
    )


def with_dropout(data: ImageData) -> nn.Module:
    return nn.Sequential(*net(data), nn.Dropout(0.1))


def trained(
    folder: Path, way: str, *, build: Callable[[ImageData], nn.Module] = with_dropout, **more: Any
) -> tuple[dict[str, float], list[Tensor]]:
    """Train with graphs; return the metrics that repeat, and the final weights."""
    folder.mkdir()
    built: list[nn.Module] = []

    def keep(data: ImageData) -> nn.Module:
        built.append(build(data))
        return built[0]

    context = Context(seed=1, folder=folder, graphs=True, **more)
    metrics = train_classifier(SETTINGS | {"train": TRAIN | WAYS[way]}, context, keep)
    weights = [weight.cpu() for weight in built[0].state_dict().values()]
    return {name: value for name, value in metrics.items() if name not in UNREPEATED}, weights


def plain(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the loops call each iteration as it is, with the same optimizer."""
    for module in (classification, together):
        monkeypatch.setattr(module, "Replayed", lambda iterate, _: iterate)


def assert_equal(one: list[Tensor], two: list[Tensor]) -> None:
    assert len(one) == len(two) > 4
    assert all(torch.equal(*pair) for pair in zip(one, two, strict=True))


# --- what is captured, and what is not


def test_the_first_iterations_are_done_as_they_are_and_the_next_is_captured(recorded: list[Recorded]) -> None:
    seen: list[tuple[int, int]] = []

    def iterate(inputs: Tensor, labels: Tensor) -> None:
        seen.append((inputs.data_ptr(), len(labels)))
        total.add_((inputs[:, 0] * labels).sum())

    total = torch.zeros(())
    step = Replayed(iterate, torch.device("cpu"))
    batches = [torch.full((size, 2), float(number + 1)) for number, size in enumerate([4, 4, 3, 4, 4, 3, 4])]
    for batch in batches:
        step(batch, torch.ones(len(batch)))
    assert total.item() == sum(batch[:, 0].sum().item() for batch in batches)
    [capture] = recorded
    assert capture.said == ["warm up"] * WARM_UP + ["capture", "replay", "replay"]
    assert [size for _, size in seen] == [4, 4, 3, 4, 4, 3], "Python runs once for the capture, and not for a replay"
    held = {address for address, size in seen if size == 4}
    assert len(held) == 1
    assert not held & {batch.data_ptr() for batch in batches}


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw"])
def test_a_rate_that_is_set_reaches_what_was_captured(recorded: list[Recorded], optimizer: str) -> None:
    model = nn.Linear(2, 1, bias=False)
    chosen = TrainSettings(epochs=1, batch=1, lr=0.1, optimizer=optimizer)  # type: ignore[arg-type]
    by = build_optimizer(model, chosen, capturable=True)

    def iterate(inputs: Tensor, labels: Tensor) -> None:
        by.zero_grad()
        (model(inputs).squeeze(1) - labels).square().mean().backward()
        by.step()

    step = Replayed(iterate, torch.device("cpu"))
    for rate in [0.1] * (WARM_UP + 1) + [0.0]:
        before = model.weight.detach().clone()
        set_rate(by, rate)
        step(torch.ones(3, 2), torch.arange(3.0))
        assert torch.equal(model.weight, before) == (rate == 0)
    assert recorded[0].said[-1] == "replay"


def test_a_network_that_cannot_be_captured_is_refused_in_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Refusing(Recorded):
        def capture(self, work: Callable[[], None]) -> None:  # noqa: ARG002
            raise RuntimeError("operation not permitted when stream is capturing\nof more lines")

    monkeypatch.setitem(graphs.CAPTURES, "cpu", Refusing)
    with pytest.raises(AblateError) as refused:
        trained(tmp_path / "a", "sgd")
    assert str(refused.value) == (
        "error: the training iteration can't be a CUDA graph: operation not permitted when stream is capturing\n"
        "hint: a network that looks at its own numbers can't be captured; take `graphs` out of `execution`"
    )


def test_a_cpu_is_refused_before_data_are_read(tmp_path: Path) -> None:
    settings = SETTINGS | {"train": TRAIN, "data": {"name": "cifar10", "split_seed": 0, "validation": 100}}
    with pytest.raises(AblateError, match="are CUDA graphs, and the device is `cpu`"):
        train_classifier(settings, Context(seed=1, folder=tmp_path, graphs=True), net)


# --- whole trainings


@pytest.mark.parametrize("way", WAYS)
def test_the_bits_are_those_of_the_plain_loop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recorded: list[Recorded], way: str
) -> None:
    metrics, weights = trained(tmp_path / "replayed", way)
    [capture] = recorded
    assert capture.said == ["warm up"] * WARM_UP + ["capture"] + ["replay"] * (3 * 4 - WARM_UP)
    plain(monkeypatch)
    expected, same = trained(tmp_path / "plain", way)
    assert len(recorded) == 1
    assert metrics == expected
    assert_equal(weights, same)


@pytest.mark.parametrize("way", WAYS)
def test_a_resumed_attempt_ends_in_the_same_bits(tmp_path: Path, recorded: list[Recorded], way: str) -> None:
    metrics, weights = trained(tmp_path / "whole", way)
    asked: Iterator[bool] = iter([*[False] * 7, True])
    with pytest.raises(Interrupted):
        trained(tmp_path / "cut", way, stop_requested=asked.__next__)
    resumed, same = trained(tmp_path / "on", way, earlier=[str(tmp_path / "cut")])
    assert metrics == resumed
    assert_equal(weights, same)
    assert len(recorded) == 3


def together_in(folder: Path, seeds: list[int], way: str, **more: Any) -> dict[int, dict[str, float]]:
    """Train seeds in a model of three, with graphs; those that have a folder in ``earlier`` go on from it."""
    asked = []
    for seed in seeds:
        place = folder / str(seed)
        place.mkdir(parents=True)
        earlier = [str(each) for each in more.get("earlier", {}).get(seed, [])]
        context = Context(seed=seed, folder=place, graphs=True, earlier=earlier, device=more.get("device", "cpu"))
        asked.append(Asked(SETTINGS | {"train": TRAIN | WAYS[way]}, context, net))
    ends = train_together(asked, 3)
    assert all(isinstance(end, dict) for end in ends)
    return {
        seed: {name: value for name, value in end.items() if name not in UNREPEATED}  # type: ignore[union-attr]
        for seed, end in zip(seeds, ends, strict=True)
    }


@pytest.mark.parametrize("way", ["sgd", "adamw"])
def test_seeds_in_one_model_are_replayed_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recorded: list[Recorded], way: str
) -> None:
    """Also where one has been trained for an epoch already, and is overtaken: its model's state is then replaced."""
    replayed = together_in(tmp_path / "replayed", [1, 2, 3], way)
    assert recorded[0].said[-1] == "replay"
    (tmp_path / "first").mkdir()
    (first := tmp_path / "first" / "checkpoint").mkdir()
    for file in ("1.pt", "manifest.json"):
        (first / file).write_bytes((tmp_path / "replayed" / "1" / "checkpoint" / file).read_bytes())
    mixed = together_in(tmp_path / "mixed", [1, 2], way, earlier={1: [tmp_path / "first"]})
    plain(monkeypatch)
    assert replayed == together_in(tmp_path / "plain", [1, 2, 3], way)
    assert mixed == {seed: replayed[seed] for seed in (1, 2)}


# --- on a GPU


@needs_cuda
@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("way", WAYS)
def test_a_cuda_graph_gives_the_bits_of_the_plain_loop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str, compiled: bool
) -> None:
    for layout in (torch.contiguous_format, torch.channels_last):
        more: dict[str, Any] = {"device": "cuda", "memory_format": layout, "compile": compiled, "build": net}
        metrics, weights = trained(tmp_path / f"replayed-{layout}", way, **more)
        again, same = trained(tmp_path / f"again-{layout}", way, **more)
        assert metrics == again
        assert_equal(weights, same)
        with monkeypatch.context() as patch:
            plain(patch)
            expected, plainly = trained(tmp_path / f"plain-{layout}", way, **more)
        assert metrics == expected
        assert_equal(weights, plainly)


@needs_cuda
@pytest.mark.parametrize("way", ["sgd", "adamw"])
def test_cuda_graphs_of_seeds_in_one_model_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str) -> None:
    replayed = together_in(tmp_path / "replayed", [1, 2, 3], way, device="cuda")
    plain(monkeypatch)
    assert replayed == together_in(tmp_path / "plain", [1, 2, 3], way, device="cuda")
