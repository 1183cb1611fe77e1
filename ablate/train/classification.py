"""Train an image classifier: the loop that most tasks share, from settings to metrics.

Equal settings and seed give equal bits on one machine with one thread count, however often the trial was interrupted
at the border of an epoch. Arms of one seed see the same images in the same batches with the same augmentation.
"""

from __future__ import annotations

import copy
import hashlib
import json
import math
import resource
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from pydantic import Field, model_validator
from sklearn.metrics import f1_score, recall_score
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim.lr_scheduler import ReduceLROnPlateau
from torch.utils.flop_counter import FlopCounterMode

from ablate.errors import AblateError
from ablate.study.prefixes import without_epochs
from ablate.train.augment import Augmenter, AugmentSettings, normalise
from ablate.train.compiled import Trained, prepare_compiler
from ablate.train.confusion import confusion_csv, per_class_csv
from ablate.train.context import Context, Diverged
from ablate.train.data import ImageData, load
from ablate.train.frozen import in_batches, parted
from ablate.train.graphs import Iteration, Replayed, check_graphs
from ablate.train.images import Images
from ablate.train.seeding import stream_seed
from ablate.train.settings import Settings

if TYPE_CHECKING:
    from ablate.train.events import Events


class TrainSettings(Settings):
    """The ``train:`` mapping of a study.

    epochs, batch  how often every image is seen, and how many at once
    optimizer      ``sgd`` (with ``momentum``), ``adam`` (β = 0.9, 0.999; its weight decay is the L2 kind) or ``adamw``
                   (the same, with weight decay apart from the gradient)
    schedule       of ``lr``: ``constant``; ``step``, × ``step_factor`` after every ``step_epochs``; ``cosine`` to 0;
                   ``one-cycle``, up to ``lr`` and down again; ``plateau``, × ``plateau_factor`` after every
                   ``plateau_epochs`` in a row in which the validation loss did not improve. The options of another
                   schedule must be off: 0 (which a step can set) or null
    label_smoothing
                   what part of the target is spread over all classes, in the loss that is trained on
    keep           the weights that are tested: of the ``last`` epoch, or of the ``best`` by validation accuracy, the
                   first of equals
    """

    epochs: int = Field(ge=1)
    batch: int = Field(ge=1)
    lr: float = Field(gt=0, allow_inf_nan=False)
    optimizer: Literal["sgd", "adam", "adamw"]
    momentum: float | None = Field(default=None, ge=0, lt=1)
    weight_decay: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    schedule: Literal["constant", "step", "cosine", "one-cycle", "plateau"] = "constant"
    step_epochs: int | None = Field(default=None, ge=0)
    step_factor: float | None = Field(default=None, ge=0, allow_inf_nan=False)
    plateau_epochs: int | None = Field(default=None, ge=0)
    plateau_factor: float | None = Field(default=None, ge=0, lt=1)
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    keep: Literal["last", "best"] = "last"

    @model_validator(mode="after")
    def _every_value_is_used(self) -> TrainSettings:
        if self.optimizer != "sgd" and self.momentum:
            raise ValueError(f"{self.optimizer} has no momentum; set momentum to null where it is {self.momentum}")
        for schedule in ("step", "plateau"):
            options = (getattr(self, f"{schedule}_epochs"), getattr(self, f"{schedule}_factor"))
            names = f"{schedule}_epochs {{}} {schedule}_factor"
            if schedule == self.schedule and not all(options):
                raise ValueError(f"the schedule `{schedule}` needs {names.format('and')}")
            if schedule != self.schedule and any(options):
                raise ValueError(f"the schedule `{self.schedule}` uses no {names.format('or')}; set both to 0 or null")
        return self


class LoopSettings(Settings):
    """What the loop reads of the whole settings; ``model`` is left to the task's own model function.

    normalise  ``true``: by the mean and standard deviation of the training part; ``constant``: both 0.5, so that
               pixels lie in -1…1; ``false``: pixels lie in 0…1
    write      what a trial leaves in its attempt folder on request: ``per_class``, artifacts/per_class.csv and
               confusion.csv of the test set; ``tensorboard``, event files with every recorded number, and some
               validation images with their predictions
    """

    model: Any = None
    data: dict[str, Any]
    augment: dict[str, Any]
    normalise: Literal[True, False, "constant"]
    train: dict[str, Any]
    write: list[Literal["per_class", "tensorboard"]] = Field(default=[])


def train_classifier(
    settings: Mapping[str, Any], context: Context, build_model: Callable[[ImageData], nn.Module]
) -> dict[str, float]:
    """Train what ``build_model`` returns (float images [B, C, H, W] → logits [B, classes]) and measure it.

    Every epoch is recorded with ``train_loss`` and ``train_acc`` (%; as its batches were trained on, augmented) and, on
    the validation part, ``val_loss`` (both losses are the mean cross-entropy of an image, in nats; the former of
    smoothed labels, where they are smoothed), ``val_acc``, ``val_macro_f1`` and
    ``val_macro_recall`` (%), and with ``lr``, the rate of its last iteration. The returned metrics are those of the
    last epoch (or of the one that is kept, see TrainSettings; the fact ``kept_epoch`` tells which), the same four of
    the test set, which is read once, at the end, and the facts ``parameters`` (trainable), ``flops`` (forward pass of
    one image), ``train_seconds`` and ``images_per_s`` (of the training iterations alone), ``peak_memory_mb`` (MiB; of
    the GPU, or of the whole process on a CPU). Where the study's primary metric is ``val_acc`` or ``test_acc``, every
    image of that part is scored: 100 if it was classified right, else 0.

    Where the model is ``nn.Sequential(Frozen(…), head)`` and the augmentation shows an image in one or two ways, the
    frozen features of every image are computed once, in batches of ``batch`` images in their order; the iterations are
    then those of the head alone, and ``train_seconds`` is theirs.

    The last, smaller batch of an epoch is trained on as well, unless it is a single image, which no BatchNorm1d can
    normalise: then it is left out, in every arm alike. Raises AblateError for settings that are wrong or of no
    effect, DataError for the data, Diverged at the end of an epoch with a loss that is not finite.
    """
    if context.together is not None:
        return context.together(settings, context, build_model)
    recipe = Recipe.read(settings, context)
    plan, data, augmenter = recipe.train, recipe.data, recipe.augmenter
    mean, std = recipe.mean, recipe.std
    events = recipe.events(context)
    torch.manual_seed(stream_seed(context.seed, "init"))
    model = build_model(data).to(context.device).to(memory_format=context.memory_format)
    optimizer = build_optimizer(model, plan, capturable=context.graphs)
    plateau = build_plateau(optimizer, plan)

    frozen, learner = parted(model)
    views = recipe.augment.views
    cached = frozen is not None and views is not None
    net = learner if cached else model
    trained = Trained(net, whole=min(plan.batch, len(data.train)), compile=context.compile)

    def output_of(net: Callable[[Tensor], Tensor], inputs: Tensor) -> Tensor:
        bfloat16 = context.dtype is torch.bfloat16
        with torch.autocast(context.device.type, dtype=torch.bfloat16, enabled=bfloat16):
            return net(inputs.contiguous(memory_format=context.memory_format) if inputs.dim() == 4 else inputs)

    def features(images: Tensor) -> Tensor:
        context.raise_if_stopped()
        assert frozen is not None
        return output_of(frozen, normalise(images, mean, std))

    def seen(part: Images) -> Images:
        """Return a part as the classifier is given it: with features in the place of images, where they are cached."""
        if not cached:
            return part
        found = in_batches(lambda index: features(part.images[index.to(part.images.device)]), len(part), plan.batch)
        return Images(found, part.labels, part.places)

    def classify(inputs: Tensor) -> Tensor:
        """Return the float32 logits of images, or of their cached features."""
        return output_of(net, inputs if cached else normalise(inputs, mean, std)).float()

    loss_sum = torch.zeros((), dtype=torch.float64, device=context.device)
    hits = torch.zeros((), dtype=torch.int64, device=context.device)

    def iterate(inputs: Tensor, labels: Tensor) -> None:
        """Train on a batch of normalised images, or of their cached features, and add to the sums of the epoch."""
        logits = output_of(trained, inputs).float()
        loss = cross_entropy(logits, labels, label_smoothing=plan.label_smoothing)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        loss_sum.add_(loss.detach() * len(labels))
        hits.add_((logits.argmax(dim=1) == labels).sum())

    step: Iteration = Replayed(iterate, context.device) if context.graphs else iterate

    # a task that trains twice in one attempt has two beginnings, and is left alone
    is_asked = context.is_one_of_several and not context.records
    signature = signature_of(settings, model, data, context) if is_asked else ""
    done, seconds = 0, 0.0
    best: dict[str, Any] = {}
    reused: dict[str, str] = {}  # what was taken from a shorter trial
    state = context.resume() or (context.resume_shorter(signature) if signature else None)
    if state:
        learner.load_state_dict(state["model"])
        restore(optimizer, state["optimizer"])
        done, seconds, best = state["epoch"], state["seconds"], state.get("best", {})
        reused = state.get("reused", {})
        if plateau:
            plateau.load_state_dict(state["plateau"])

    for name, value in reused.items():
        context.fact(f"reused_{name}", value)

    model.eval()
    validation = seen(data.validation)
    table = None  # of cached features: [views, N, …]
    if cached:

        def view(flip: bool) -> Tensor:
            return in_batches(lambda index: features(augmenter.view(index, flip=flip)), len(data.train), plan.batch)

        table = torch.stack([view(flip) for flip in (False, True)[:views]])

    metrics: dict[str, float] = {}
    for epoch in range(done + 1, plan.epochs + 1):
        batches = batches_of_epoch(len(data.train), plan.batch, context.generator("order", epoch))
        draws = augmenter.draws(context.generator("augment", epoch))
        torch.manual_seed(stream_seed(context.seed, "noise", epoch))  # dropout, and whatever else a model draws
        model.train()
        started = time.perf_counter()
        loss_sum.zero_()
        hits.zero_()
        for number, batch in enumerate(batches):
            context.raise_if_stopped()
            if not plateau:
                set_rate(optimizer, learning_rate(plan, epoch, iteration=number, iterations=len(batches)))
            index = batch.to(context.device)
            if table is None:
                inputs = augmenter.cut_out(normalise(augmenter.batch(index, draws), mean, std), index, draws)
            else:
                inputs = table[draws.flip[index].long(), index]
            step(inputs, data.train.labels[index])
        train_loss = loss_sum.item() / sum(map(len, batches))  # here alone the epoch waits for the device
        train_acc = 100 * hits.item() / sum(map(len, batches))
        took = time.perf_counter() - started - trained.compiling_s()
        seconds += took
        trained.note(context)

        model.eval()
        measured, guesses = evaluate(classify, validation, data.classes, plan.batch, "val")
        metrics = {"train_loss": train_loss, "train_acc": train_acc} | measured
        facts = {"lr": float(optimizer.param_groups[0]["lr"]), "images_per_s": sum(map(len, batches)) / took}
        if context.device.type == "cuda":
            facts["peak_memory_mb"] = peak_memory_mb(context.device)
        record_epoch(context, events, plan, epoch, facts, metrics)
        if plateau:
            plateau.step(metrics["val_loss"])
        if plan.keep == "best" and (not best or metrics["val_acc"] > best["metrics"]["val_acc"]):
            best = {"epoch": epoch, "metrics": metrics, "model": copy.deepcopy(learner.state_dict())}
        state = {
            "model": learner.state_dict(),
            "optimizer": optimizer.state_dict(),
            "plateau": plateau.state_dict() if plateau else {},
            "best": best,
            "epoch": epoch,
            "seconds": seconds,
            "reused": reused,
        }
        if epoch < plan.epochs:
            context.checkpoint(state)
        elif signature:
            context.keep_end(state, signature)

    if best:
        context.fact("kept_epoch", str(best["epoch"]))
        learner.load_state_dict(best["model"])
        metrics = best["metrics"]
        _, guesses = evaluate(classify, validation, data.classes, plan.batch, "val")
    test = data.read_test()
    measured, test_guesses = evaluate(classify, seen(test), data.classes, plan.batch, "test")
    found = {"val": guesses, "test": test_guesses}
    conclude(context, recipe, found, test, events, epoch=best.get("epoch", plan.epochs))
    cost = {"train_seconds": seconds, "images_per_s": plan.epochs * sum(map(len, batches)) / seconds}
    return metrics | measured | described(model, data, context) | cost


@dataclass(frozen=True)
class Recipe:
    """What the settings of a trial ask for, read and found to be sound, with the data that they name."""

    train: TrainSettings
    augment: AugmentSettings
    write: tuple[str, ...]
    data: ImageData
    mean: Tensor | None
    std: Tensor | None
    augmenter: Augmenter

    @classmethod
    def read(cls, settings: Mapping[str, Any], context: Context) -> Recipe:
        """Return it for a context's device, and make the process repeatable. Raises AblateError."""
        chosen = LoopSettings.read(settings, "settings")
        train = TrainSettings.read(chosen.train, "train")
        augment = AugmentSettings.read(chosen.augment, "augment")
        be_repeatable(context)
        if "tensorboard" in chosen.write:
            from ablate.train.events import writer_class  # tensorboard, which few trials need

            writer_class()
        data = load(chosen.data, device=context.device)
        mean, std = statistics(data, chosen.normalise)
        augmenter = Augmenter(data.train.images, augment, size=data.size)
        return cls(train, augment, tuple(chosen.write), data, mean, std, augmenter)

    def events(self, context: Context) -> Events | None:
        """Return the event files of a trial, where they are asked for, and note what its data are."""
        context.fact("data_sha256", self.data.sha256())
        if "tensorboard" not in self.write:
            return None
        from ablate.train.events import Events

        return Events(context.folder)


def record_epoch(
    context: Context,
    events: Events | None,
    train: TrainSettings,
    epoch: int,
    facts: Mapping[str, float],
    metrics: Mapping[str, float],
) -> None:
    """Record what an epoch gave. Raises Diverged where a loss is not finite."""
    context.record(epoch=epoch, epochs=train.epochs, **facts, **metrics)
    if events:
        events.scalars(context.records)
    for name in ("train_loss", "val_loss"):
        if not math.isfinite(metrics[name]):
            raise Diverged(f"{name} is {metrics[name]} in epoch {epoch} of {train.epochs}")


def conclude(
    context: Context,
    recipe: Recipe,
    guesses: Mapping[str, npt.NDArray[np.int64]],
    test: Images,
    events: Events | None,
    *,
    epoch: int,
) -> None:
    """Write what a trial leaves behind: its artifacts, its scores per example and the end of its event files.

    ``guesses`` are classes of the parts ``val`` and ``test``, by the weights of ``epoch``.
    """
    data = recipe.data
    if events:
        events.predictions(data.validation, guesses["val"], epoch=epoch)
        events.close()
    if "per_class" in recipe.write:
        truth = test.labels.cpu().numpy()
        context.artifact("per_class.csv", per_class_csv(truth, guesses["test"], data.classes))
        context.artifact("confusion.csv", confusion_csv(truth, guesses["test"], data.classes))
    parts = {"val_acc": (data.validation, guesses["val"]), "test_acc": (test, guesses["test"])}
    primary = context.metrics[0] if context.metrics else "val_acc"
    if primary in parts:
        part, found = parts[primary]
        right = found == part.labels.cpu().numpy()
        context.scores(part.ids.tolist(), np.where(right, 100.0, 0.0).tolist())


def described(model: nn.Module, data: ImageData, context: Context) -> dict[str, float]:
    """Return a network's size, its floating-point operations for one image, and the memory that was needed."""
    image = torch.zeros(1, data.channels, data.size, data.size, device=context.device)
    return {
        "parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
        "flops": count_flops(model, image),
        "peak_memory_mb": peak_memory_mb(context.device),
    }


def signature_of(settings: Mapping[str, Any], model: nn.Module, data: ImageData, context: Context) -> str:
    """Return a hash of all that training depends on but for the number of epochs; empty where it looks ahead to that.

    A task may make its model or its settings from the number of epochs: that shows here, in the initial weights, in
    what the modules hold, or in the settings as the loop is given them.
    """
    found = without_epochs(settings)
    if found is None:
        return ""
    device = torch.cuda.get_device_name(context.device) if context.device.type == "cuda" else "cpu"
    way = [str(context.dtype), str(context.memory_format), device, torch.get_num_threads(), torch.__version__]
    way += [key for key in ("compile", "graphs") if getattr(context, key)]
    parts = [
        [name, type(part).__qualname__, sorted((key, value) for key, value in vars(part).items() if _is_plain(value))]
        for name, part in model.named_modules()
    ]
    digest = hashlib.sha256(
        repr([json.dumps(found[1], sort_keys=True, default=repr), data.sha256(), way, parts, model]).encode()
    )
    for name, tensor in model.state_dict().items():
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def _is_plain(value: object) -> bool:
    if isinstance(value, (tuple, list)):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, (bool, int, float, str))


def statistics(data: ImageData, how: bool | str) -> tuple[Tensor, Tensor] | tuple[None, None]:
    """Return the mean and the standard deviation (float32 [C]) that the setting ``normalise`` asks for."""
    if how == "constant":
        return torch.full_like(data.mean, 0.5), torch.full_like(data.std, 0.5)
    return (data.mean, data.std) if how else (None, None)


def learning_rate(train: TrainSettings, epoch: int, *, iteration: int = 0, iterations: int = 1) -> float:
    """Return the rate of ``epoch``, counted from 1, at its ``iteration`` of so many, counted from 0.

    The cosine is lr · ½(1 + cos(π (epoch - 1) / epochs)): Loshchilov & Hutter 2017, "SGDR", eq. 5, one cycle, stepped
    by epoch. One-cycle is stepped by iteration: Smith & Topin 2019, "Super-Convergence", with the numbers of torch's
    OneCycleLR (from lr / 25 up to lr over the first 30 %, then down to lr / 250,000, both along a cosine), and
    without its cycle of the momentum.
    """
    if train.schedule == "step":
        assert train.step_epochs is not None
        assert train.step_factor is not None
        return train.lr * train.step_factor ** ((epoch - 1) // train.step_epochs)
    if train.schedule == "cosine":
        return train.lr * 0.5 * (1 + math.cos(math.pi * (epoch - 1) / train.epochs))
    if train.schedule == "one-cycle":
        total = train.epochs * iterations
        place, top = (epoch - 1) * iterations + iteration, 0.3 * total - 1
        if place <= top:
            return _along_cosine(train.lr / 25, train.lr, place / top)
        return _along_cosine(train.lr, train.lr / 250_000, (place - top) / (total - 1 - top))
    return train.lr


def _along_cosine(first: float, last: float, part: float) -> float:
    return last + (first - last) * 0.5 * (1 + math.cos(math.pi * part))


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    for group in optimizer.param_groups:
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(rate)
        else:
            group["lr"] = rate


def build_optimizer(model: nn.Module, train: TrainSettings, *, capturable: bool = False) -> torch.optim.Optimizer:
    """Return the optimizer of the model's trainable parameters.

    A ``capturable`` one can be part of a CUDA graph: its rate is a tensor beside the weights, and all of its state is.
    """
    parameters = [p for p in model.parameters() if p.requires_grad]
    more: dict[str, Any] = {"lr": train.lr, "weight_decay": train.weight_decay}
    if capturable:  # torch's SGD takes a rate on the device in its fused form alone, and Adam's then is the quickest
        more |= {"lr": torch.tensor(train.lr, device=parameters[0].device), "fused": True}
    if train.optimizer == "sgd":
        return torch.optim.SGD(parameters, momentum=train.momentum or 0.0, **more)
    kind = torch.optim.Adam if train.optimizer == "adam" else torch.optim.AdamW
    return kind(parameters, capturable=capturable, **more)


def restore(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Load an optimizer's state, wherever it was: a rate that is a tensor stays the one beside the weights."""
    rates = [group["lr"] for group in optimizer.param_groups]
    optimizer.load_state_dict(state)
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        if isinstance(rate, Tensor):
            group["lr"] = rate.fill_(float(group["lr"]))


def build_plateau(optimizer: torch.optim.Optimizer, train: TrainSettings) -> ReduceLROnPlateau | None:
    """Return what lowers the rate where the validation loss stands still; None for the other schedules."""
    if train.schedule != "plateau":
        return None
    assert train.plateau_epochs is not None
    assert train.plateau_factor is not None
    # its patience is how many such epochs it lets pass
    return ReduceLROnPlateau(optimizer, patience=train.plateau_epochs - 1, factor=train.plateau_factor)


def batches_of_epoch(count: int, batch: int, generator: torch.Generator) -> list[Tensor]:
    """Return a random order of ``count`` images in batches (int64 [batch], on the CPU).

    The last may be smaller; a last single image is left out, because BatchNorm1d has no variance for it.
    """
    order = torch.randperm(count, generator=generator)
    batches = [order[start : start + batch] for start in range(0, count, batch)]
    if len(batches) > 1 and len(batches[-1]) == 1 < batch:
        batches.pop()
    return batches


@torch.no_grad()
def evaluate(
    classify: Callable[[Tensor], Tensor], part: Images, classes: int, batch: int, prefix: str
) -> tuple[dict[str, float], npt.NDArray[np.int64]]:
    """Return measures of one part and the class that each of its images was taken for, int64 [N].

    The measures are ``loss`` (mean cross-entropy), ``acc``, ``macro_f1`` and ``macro_recall`` (%), prefixed. The macro
    means run over all ``classes``; a class that is neither present nor predicted counts as 0.
    """
    loss_sum = torch.zeros((), dtype=torch.float64, device=part.labels.device)
    predicted = torch.empty_like(part.labels)
    for start in range(0, len(part), batch):
        here = slice(start, start + batch)
        logits = classify(part.images[here])
        loss_sum += cross_entropy(logits, part.labels[here], reduction="sum")
        predicted[here] = logits.argmax(dim=1)
    guess = predicted.cpu().numpy()
    return measures(guess, part.labels.cpu().numpy(), loss_sum.item() / len(part), classes, prefix), guess


def measures(
    guess: npt.NDArray[np.int64], truth: npt.NDArray[np.int64], loss: float, classes: int, prefix: str
) -> dict[str, float]:
    """Return the measures of one part that ``evaluate`` describes, from the classes that its images were taken for."""
    macro = {"labels": range(classes), "average": "macro", "zero_division": 0}
    return {
        f"{prefix}_loss": loss,
        f"{prefix}_acc": 100 * float((truth == guess).mean()),
        f"{prefix}_macro_f1": 100 * float(f1_score(truth, guess, **macro)),
        f"{prefix}_macro_recall": 100 * float(recall_score(truth, guess, **macro)),
    }


def count_flops(model: nn.Module, image: Tensor) -> int:
    """Return the floating-point operations (multiply-adds × 2) of one forward pass of ``image`` [1, C, H, W].

    Convolutions, matrix products and attention are counted; what is elementwise isn't. A copy runs, in evaluation mode
    and with the random state put back, so that the model and its streams stay as they were.
    """
    devices = [image.device] if image.device.type == "cuda" else []
    with torch.random.fork_rng(devices), torch.no_grad(), FlopCounterMode(display=False) as counter:
        copy.deepcopy(model).eval()(image)
    return int(counter.get_total_flops())


def be_repeatable(context: Context) -> None:
    """Choose algorithms that give equal bits for equal input; an operation that has none warns in the log.

    Raises AblateError for a dtype that the loop has no arithmetic for, and for what the machine lacks.
    """
    if context.dtype not in (torch.float32, torch.bfloat16):
        raise AblateError(
            f"execution.dtype {str(context.dtype).removeprefix('torch.')} is not one that this loop trains in",
            hint="use float32 or bfloat16",
        )
    if context.graphs:
        check_graphs(context.device)
    if context.compile:
        prepare_compiler(context.device)
    if context.device.type == "cuda":
        torch.backends.cudnn.benchmark = False  # it picks algorithms by timing them
        torch.cuda.reset_peak_memory_stats(context.device)
    torch.use_deterministic_algorithms(True, warn_only=True)


def peak_memory_mb(device: torch.device) -> float:
    """Return the most memory (MiB) that tensors held on a GPU, or that the process held on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024  # Linux counts in KiB
