"""Train an image classifier: the loop that most tasks share, from settings to metrics.

Equal settings and seed give equal bits on one machine with one thread count, however often the trial was interrupted
at the border of an epoch. Arms of one seed see the same images in the same batches with the same augmentation.
"""

from __future__ import annotations

import copy
import math
import resource
import time
from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch
from pydantic import Field, model_validator
from sklearn.metrics import f1_score, recall_score
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.flop_counter import FlopCounterMode

from ablate.errors import AblateError
from ablate.train.augment import Augmenter, AugmentSettings, normalise
from ablate.train.context import Context, Diverged
from ablate.train.data import ImageData, Images, load
from ablate.train.seeding import stream_seed
from ablate.train.settings import Settings


class TrainSettings(Settings):
    """The ``train:`` mapping of a study.

    epochs, batch  how often every image is seen, and how many at once
    optimizer      ``sgd`` (with ``momentum``) or ``adam`` (β = 0.9, 0.999; its weight decay is the L2 kind)
    schedule       of ``lr``: ``constant``; ``step``, × ``step_factor`` after every ``step_epochs``; ``cosine`` to 0
    """

    epochs: int = Field(ge=1)
    batch: int = Field(ge=1)
    lr: float = Field(gt=0, allow_inf_nan=False)
    optimizer: Literal["sgd", "adam"]
    momentum: float | None = Field(default=None, ge=0, lt=1)
    weight_decay: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    schedule: Literal["constant", "step", "cosine"] = "constant"
    step_epochs: int | None = Field(default=None, ge=1)
    step_factor: float | None = Field(default=None, gt=0, allow_inf_nan=False)

    @model_validator(mode="after")
    def _every_value_is_used(self) -> TrainSettings:
        if self.optimizer == "adam" and self.momentum:
            raise ValueError(f"adam has no momentum; set momentum to null where it is {self.momentum}")
        steps = (self.step_epochs, self.step_factor)
        if self.schedule == "step" and None in steps:
            raise ValueError("the schedule `step` needs step_epochs and step_factor")
        if self.schedule != "step" and steps != (None, None):
            raise ValueError(f"the schedule `{self.schedule}` uses no step_epochs or step_factor; set both to null")
        return self


class LoopSettings(Settings):
    """What the loop reads of the whole settings; ``model`` is left to the task's own model function."""

    model: Any = None
    data: dict[str, Any]
    augment: dict[str, Any]
    normalise: bool
    train: dict[str, Any]


def train_classifier(
    settings: Mapping[str, Any], context: Context, build_model: Callable[[ImageData], nn.Module]
) -> dict[str, float]:
    """Train what ``build_model`` returns (float images [B, C, H, W] → logits [B, classes]) and measure it.

    Every epoch is recorded with ``train_loss`` and, on the validation part, ``val_loss`` (both the mean cross-entropy
    of an image, in nats), ``val_acc``, ``val_macro_f1`` and ``val_macro_recall`` (%). The returned metrics are those
    of the last epoch, the same four of the test set, which is read once, at the end, and the facts ``parameters``
    (trainable), ``flops`` (forward pass of one image), ``train_seconds`` and ``images_per_s`` (of the training
    iterations alone), ``peak_memory_mb`` (MiB; of the GPU, or of the whole process on a CPU). Where the study's primary
    metric is ``val_acc`` or ``test_acc``, every image of that part is scored: 100 if it was classified right, else 0.

    The last, smaller batch of an epoch is trained on as well, unless it is a single image, which no BatchNorm1d can
    normalise: then it is left out, in every arm alike. Raises AblateError for settings that are wrong or of no
    effect, DataError for the data, Diverged at the end of an epoch with a loss that is not finite.
    """
    chosen = LoopSettings.read(settings, "settings")
    plan = TrainSettings.read(chosen.train, "train")
    augment = AugmentSettings.read(chosen.augment, "augment")
    be_repeatable(context)
    data = load(chosen.data, device=context.device)
    context.fact("data_sha256", data.sha256())
    mean, std = (data.mean, data.std) if chosen.normalise else (None, None)
    augmenter = Augmenter(data.train.images, augment)

    torch.manual_seed(stream_seed(context.seed, "init"))
    model = build_model(data).to(context.device)
    optimizer = build_optimizer(model, plan)

    def logits_of(images: Tensor) -> Tensor:
        bfloat16 = context.dtype is torch.bfloat16
        with torch.autocast(context.device.type, dtype=torch.bfloat16, enabled=bfloat16):
            logits: Tensor = model(normalise(images, mean, std))
        return logits.float()

    done, seconds = 0, 0.0
    if state := context.resume():
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        done, seconds = state["epoch"], state["seconds"]

    metrics: dict[str, float] = {}
    for epoch in range(done + 1, plan.epochs + 1):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(plan, epoch)
        batches = batches_of_epoch(len(data.train), plan.batch, context.generator("order", epoch))
        draws = augmenter.draws(context.generator("augment", epoch))
        torch.manual_seed(stream_seed(context.seed, "noise", epoch))  # dropout, and whatever else a model draws
        model.train()
        started = time.perf_counter()
        loss_sum = torch.zeros((), dtype=torch.float64, device=context.device)
        for batch in batches:
            context.raise_if_stopped()
            index = batch.to(context.device)
            loss = cross_entropy(logits_of(augmenter.batch(index, draws)), data.train.labels[index])
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            loss_sum += loss.detach() * len(batch)
        train_loss = loss_sum.item() / sum(map(len, batches))  # the epoch's only wait for the device
        took = time.perf_counter() - started
        seconds += took

        model.eval()
        measured, val_right = evaluate(logits_of, data.validation, data.classes, plan.batch, "val")
        metrics = {"train_loss": train_loss} | measured
        speed = sum(map(len, batches)) / took
        context.record(epoch=epoch, epochs=plan.epochs, images_per_s=speed, **metrics)
        for name in ("train_loss", "val_loss"):
            if not math.isfinite(metrics[name]):
                raise Diverged(f"{name} is {metrics[name]} in epoch {epoch} of {plan.epochs}")
        if epoch < plan.epochs:
            context.checkpoint(
                {
                    "model": model.state_dict(),
                    "optimizer": optimizer.state_dict(),
                    "epoch": epoch,
                    "seconds": seconds,
                }
            )

    test = data.read_test()
    measured, test_right = evaluate(logits_of, test, data.classes, plan.batch, "test")
    metrics |= measured
    scored = {"val_acc": (data.validation, val_right), "test_acc": (test, test_right)}
    part, right = scored.get(context.metrics[0] if context.metrics else "val_acc", (test, []))
    if right:
        context.scores(part.ids.tolist(), [100.0 if each else 0.0 for each in right])
    images_seen = plan.epochs * sum(map(len, batches))
    return metrics | {
        "parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
        "flops": count_flops(model, torch.zeros(1, data.channels, data.size, data.size, device=context.device)),
        "train_seconds": seconds,
        "images_per_s": images_seen / seconds,
        "peak_memory_mb": peak_memory_mb(context.device),
    }


def learning_rate(train: TrainSettings, epoch: int) -> float:
    """Return the rate of ``epoch``, counted from 1. The cosine is lr · ½(1 + cos(π (epoch - 1) / epochs)).

    Source of the cosine: Loshchilov & Hutter 2017, "SGDR", eq. 5, one cycle, stepped by epoch.
    """
    if train.schedule == "step":
        assert train.step_epochs is not None
        assert train.step_factor is not None
        return train.lr * train.step_factor ** ((epoch - 1) // train.step_epochs)
    if train.schedule == "cosine":
        return train.lr * 0.5 * (1 + math.cos(math.pi * (epoch - 1) / train.epochs))
    return train.lr


def build_optimizer(model: nn.Module, train: TrainSettings) -> torch.optim.Optimizer:
    """Return the optimizer of the model's trainable parameters."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    if train.optimizer == "adam":
        return torch.optim.Adam(parameters, lr=train.lr, weight_decay=train.weight_decay)
    return torch.optim.SGD(parameters, lr=train.lr, momentum=train.momentum or 0.0, weight_decay=train.weight_decay)


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
    logits_of: Callable[[Tensor], Tensor], part: Images, classes: int, batch: int, prefix: str
) -> tuple[dict[str, float], list[bool]]:
    """Return measures of one part and, for each of its images, whether it was classified right.

    The measures are ``loss`` (mean cross-entropy), ``acc``, ``macro_f1`` and ``macro_recall`` (%), prefixed. The macro
    means run over all ``classes``; a class that is neither present nor predicted counts as 0.
    """
    loss_sum = torch.zeros((), dtype=torch.float64, device=part.labels.device)
    predicted = torch.empty_like(part.labels)
    for start in range(0, len(part), batch):
        here = slice(start, start + batch)
        logits = logits_of(part.images[here])
        loss_sum += cross_entropy(logits, part.labels[here], reduction="sum")
        predicted[here] = logits.argmax(dim=1)
    truth, guess = part.labels.cpu().numpy(), predicted.cpu().numpy()
    right: list[bool] = (truth == guess).tolist()
    macro = {"labels": range(classes), "average": "macro", "zero_division": 0}
    measured = {
        f"{prefix}_loss": loss_sum.item() / len(part),
        f"{prefix}_acc": 100 * float((truth == guess).mean()),
        f"{prefix}_macro_f1": 100 * float(f1_score(truth, guess, **macro)),
        f"{prefix}_macro_recall": 100 * float(recall_score(truth, guess, **macro)),
    }
    return measured, right


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

    Raises AblateError for a dtype that the loop has no arithmetic for.
    """
    if context.dtype not in (torch.float32, torch.bfloat16):
        raise AblateError(
            f"execution.dtype {str(context.dtype).removeprefix('torch.')} is not one that this loop trains in",
            hint="use float32 or bfloat16",
        )
    if context.device.type == "cuda":
        torch.backends.cudnn.benchmark = False  # it picks algorithms by timing them
        torch.cuda.reset_peak_memory_stats(context.device)
    torch.use_deterministic_algorithms(True, warn_only=True)


def peak_memory_mb(device: torch.device) -> float:
    """Return the most memory (MiB) that tensors held on a GPU, or that the process held on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024  # Linux counts in KiB
