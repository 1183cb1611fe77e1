"""Train several seeds of one arm in one model: the loop of ``classification``, for K members at a time.

Each member has the batches, the augmentation, the initial weights, the records and the checkpoints that it would have
alone, and in exact arithmetic the same weights; in float32 they differ as between two layouts of memory. A member's
place in the model is its seed modulo K, and an empty place is filled by a copy of another member: its bits then depend
on nothing but its trial and K.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Never

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from ablate.errors import AblateError
from ablate.train.augment import Draws, normalise
from ablate.train.classification import (
    Recipe,
    TrainSettings,
    batches_of_epoch,
    build_optimizer,
    conclude,
    described,
    learning_rate,
    measures,
    record_epoch,
    restore,
    set_rate,
)
from ablate.train.compiled import Trained
from ablate.train.context import Context, Diverged, Interrupted
from ablate.train.data import ImageData
from ablate.train.frozen import parted
from ablate.train.fused import (
    Unfusable,
    by_member,
    fuse,
    joined_optimizer_states,
    joined_states,
    own_optimizer_state,
    own_state,
    side_by_side,
)
from ablate.train.graphs import Iteration, Replayed
from ablate.train.images import Images
from ablate.train.seeding import stream_seed


@dataclass(frozen=True)
class Asked:
    """What one seed's task asks of ``train_classifier``."""

    settings: Mapping[str, Any]
    context: Context
    build_model: Callable[[ImageData], nn.Module]


@dataclass
class _Member:
    """One seed of a group, and its training so far.

    ``state`` is that of its own model and optimizer after ``done`` epochs, as in its checkpoints.
    """

    context: Context
    events: Any
    state: dict[str, Any]
    done: int = 0
    seconds: float = 0.0
    best: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)
    guesses: npt.NDArray[np.int64] | None = None
    diverged: Diverged | None = None


def train_together(asked: Sequence[Asked], members: int) -> list[dict[str, float] | Diverged]:
    """Train up to K = ``members`` seeds in one model; return what ``train_classifier`` would have returned of each.

    One that diverges gives its Diverged, and the others go on. Seeds that have come to different epochs before go on
    from where they were: those behind first. ``train_seconds`` of a seed is its share. Raises Unfusable for a network
    or a schedule that does not allow it, and all that ``train_classifier`` raises.
    """
    group = _Group(asked, members)
    while active := group.behind():
        group.train_epoch(active)
    return group.conclude()


def check_together(asked: Sequence[Asked], members: int) -> Never:
    """Raise what keeps these seeds from being trained in one model; where nothing does, Interrupted."""
    _Group(asked, members)
    raise Interrupted


class _Group:
    """K places in one model, the seeds that take them, and the data that all of them see."""

    def __init__(self, asked: Sequence[Asked], places: int) -> None:
        first = asked[0]
        if any(dict(each.settings) != dict(first.settings) for each in asked):
            raise Unfusable("the settings that the task gives to train_classifier depend on the seed")
        self.recipe = recipe = Recipe.read(first.settings, first.context)
        self.places = places
        self._context = first.context  # what is the same in all: device, arithmetic, layout
        if recipe.train.schedule == "plateau":
            raise Unfusable("with the schedule `plateau` each seed comes to a rate of its own")
        self.models = [self._built(each) for each in asked]
        data, device = recipe.data, self._context.device
        image = torch.randn(2, data.channels, data.size, data.size, generator=torch.Generator().manual_seed(0))
        by_place = [self.models[0]] * places
        self._place = {each.context.seed: each.context.seed % places for each in asked}
        if len(set(self._place.values())) < len(asked):
            raise AblateError(f"seeds {sorted(self._place)} have no places of their own among {places}")
        for each, model in zip(asked, self.models, strict=True):
            by_place[self._place[each.context.seed]] = model
        self._net = fuse(by_place, image.to(device)).to(memory_format=self._context.memory_format)
        self._trained = Trained(
            self._net, whole=min(recipe.train.batch, len(data.train)), compile=self._context.compile
        )
        self._optimizer = build_optimizer(self._net, recipe.train, capturable=self._context.graphs)
        self._loss_sum = torch.zeros(places, dtype=torch.float64, device=device)
        self._hits = torch.zeros(places, dtype=torch.int64, device=device)
        fresh = {"state": {}, "param_groups": self._optimizer.state_dict()["param_groups"]}
        self.members = [
            _started(each.context, recipe, {"model": model.state_dict(), "optimizer": copy.deepcopy(fresh)})
            for each, model in zip(asked, self.models, strict=True)
        ]
        for member in self.members:
            member.context.fact("fused", f"{places} seeds in one model")
        self._seated: list[int] = []

    def _built(self, asked: Asked) -> nn.Module:
        context = asked.context
        torch.manual_seed(stream_seed(context.seed, "init"))
        model = asked.build_model(self.recipe.data).to(context.device).to(memory_format=context.memory_format)
        if parted(model)[0] is not None:
            raise Unfusable("a Frozen part is the same for all seeds, and is computed once for each image already")
        return model

    # --- who trains

    def behind(self) -> list[_Member]:
        """Return the members that train the next epoch: those that have done the least; none at the end."""
        unfinished = [each for each in self.members if each.diverged is None and each.done < self.recipe.train.epochs]
        least = min((each.done for each in unfinished), default=0)
        return [each for each in unfinished if each.done == least]

    def _seat(self, active: Sequence[_Member]) -> list[_Member]:
        """Return who takes each place: an empty one is taken by a copy."""
        by_place = {self._place[each.context.seed]: each for each in active}
        return [by_place.get(place, active[0]) for place in range(self.places)]

    def _load(self, seated: list[_Member], states: Sequence[Mapping[str, Any]]) -> None:
        self._net.load_state_dict(joined_states([state["model"] for state in states]))
        restore(self._optimizer, joined_optimizer_states([state["optimizer"] for state in states]))
        # what was captured knows the former state of the optimizer
        self._step: Iteration = Replayed(self._iterate, self._context.device) if self._context.graphs else self._iterate
        self._seated = [id(each) for each in seated]

    # --- what is computed

    def _logits(self, net: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
        """Return the float32 logits [K, B, classes] of normalised images [K, B, C, H, W]."""
        context = self._context
        with torch.autocast(context.device.type, dtype=torch.bfloat16, enabled=context.dtype is torch.bfloat16):
            out = net(side_by_side(images, context.memory_format))
        return by_member(out.float(), self.places)

    def _iterate(self, images: Tensor, labels: Tensor) -> None:
        """Train on normalised images [K, B, C, H, W] with labels [K, B], and add to the sums of the epoch."""
        logits = self._logits(self._trained, images)
        losses = losses_of(logits, labels, self.recipe.train)
        self._optimizer.zero_grad()
        losses.sum().backward()  # type: ignore[no-untyped-call]
        self._optimizer.step()
        self._loss_sum.add_(losses.detach() * labels.shape[1])
        self._hits.add_((logits.argmax(dim=2) == labels).sum(dim=1))

    def train_epoch(self, active: Sequence[_Member]) -> None:
        """Train one epoch of ``active``, measure it, and record and keep what each has come to."""
        recipe, plan, data = self.recipe, self.recipe.train, self.recipe.data
        epoch = active[0].done + 1
        seated = self._seat(active)
        if [id(each) for each in seated] != self._seated:
            self._load(seated, [each.state for each in seated])
        orders = {id(each): self._order(each, epoch) for each in active}
        draws = {id(each): recipe.augmenter.draws(each.context.generator("augment", epoch)) for each in active}
        drawn = _stacked([draws[id(each)] for each in seated])
        batches = [torch.stack(rows) for rows in zip(*(orders[id(each)] for each in seated), strict=True)]
        first_draw = torch.arange(self.places, device=self._context.device)[:, None] * len(data.train)

        self._net.train()
        started = time.perf_counter()
        self._loss_sum.zero_()
        self._hits.zero_()
        for number, batch in enumerate(batches):
            self._context.raise_if_stopped()
            set_rate(self._optimizer, learning_rate(plan, epoch, iteration=number, iterations=len(batches)))
            index = batch.to(self._context.device)
            self._step(self._batch(index, first_draw + index, drawn), data.train.labels[index])
        seen = sum(batch.shape[1] for batch in batches)
        train_loss, right = (self._loss_sum / seen).tolist(), self._hits.tolist()
        took = (time.perf_counter() - started - self._trained.compiling_s()) / len(active)

        self._net.eval()
        measured = self._measured(data.validation, "val")
        model, optimizer = self._net.state_dict(), self._optimizer.state_dict()
        facts = {"lr": float(self._optimizer.param_groups[0]["lr"]), "images_per_s": seen / took}
        for member in active:
            place = self._place[member.context.seed]
            values, member.guesses = measured[place]
            member.metrics = {"train_loss": train_loss[place], "train_acc": 100 * right[place] / seen} | values
            member.seconds += took
            member.done = epoch
            self._trained.note(member.context)
            member.state = {
                "model": own_state(model, place, self.places),
                "optimizer": own_optimizer_state(optimizer, place, self.places),
            }
            self._keep(member, facts)

    def _order(self, member: _Member, epoch: int) -> list[Tensor]:
        return batches_of_epoch(
            len(self.recipe.data.train), self.recipe.train.batch, member.context.generator("order", epoch)
        )

    def _batch(self, index: Tensor, rows: Tensor, drawn: Draws) -> Tensor:
        """Return the augmented, normalised images [K, B, C, H, W] at ``index`` [K, B], by the draws at ``rows``."""
        recipe, every, row = self.recipe, index.flatten(), rows.flatten()
        images = normalise(recipe.augmenter.batch(every, drawn, row), recipe.mean, recipe.std)
        images = recipe.augmenter.cut_out(images, row, drawn)
        return images.view(*index.shape, *images.shape[1:])

    def _keep(self, member: _Member, facts: Mapping[str, float]) -> None:
        """Record a member's epoch, note where it has diverged, and write its checkpoint."""
        plan = self.recipe.train
        try:
            record_epoch(member.context, member.events, plan, member.done, facts, member.metrics)
        except Diverged as diverged:
            member.diverged = diverged
            return
        if plan.keep == "best" and (not member.best or member.metrics["val_acc"] > member.best["metrics"]["val_acc"]):
            member.best = {"epoch": member.done, "metrics": member.metrics, "model": member.state["model"]}
        if member.done < plan.epochs:
            member.context.checkpoint(
                {
                    **member.state,
                    "plateau": {},
                    "best": member.best,
                    "epoch": member.done,
                    "seconds": member.seconds,
                    "reused": {},
                }
            )

    @torch.no_grad()
    def _measured(self, part: Images, prefix: str) -> list[tuple[dict[str, float], npt.NDArray[np.int64]]]:
        """Return of each place what ``evaluate`` returns of a model: the measures of a part, and its guesses."""
        recipe, batch = self.recipe, self.recipe.train.batch
        loss_sum = torch.zeros(self.places, dtype=torch.float64, device=part.labels.device)
        predicted = torch.empty(self.places, len(part), dtype=torch.int64, device=part.labels.device)
        for start in range(0, len(part), batch):
            here = slice(start, start + batch)
            images = normalise(part.images[here], recipe.mean, recipe.std)
            logits = self._logits(self._net, images.expand(self.places, *images.shape))
            labels = part.labels[here].expand(self.places, -1)
            loss_sum += _each(logits, labels).sum(dim=1)
            predicted[:, here] = logits.argmax(dim=2)
        truth, guesses = part.labels.cpu().numpy(), predicted.cpu().numpy()
        losses = (loss_sum / len(part)).tolist()
        return [
            (measures(guess, truth, loss, recipe.data.classes, prefix), guess)
            for guess, loss in zip(guesses, losses, strict=True)
        ]

    # --- the end

    def conclude(self) -> list[dict[str, float] | Diverged]:
        """Measure the test set and return each member's metrics."""
        finished = [each for each in self.members if each.diverged is None]
        if not finished:
            return [_diverged(each) for each in self.members]
        seated = self._seat(finished)
        if self.recipe.train.keep == "best":
            self._load(seated, [{**each.state, "model": each.best["model"]} for each in seated])
        elif [id(each) for each in seated] != self._seated:
            self._load(seated, [each.state for each in seated])
        self._net.eval()
        test = self.recipe.data.read_test()
        measured = self._measured(test, "test")
        if self.recipe.train.keep == "best":
            for member, (_, guesses) in zip(seated, self._measured(self.recipe.data.validation, "val"), strict=True):
                member.guesses = guesses
        return [
            self._told(member, model, test, *measured[self._place[member.context.seed]])
            if member.diverged is None
            else member.diverged
            for member, model in zip(self.members, self.models, strict=True)
        ]

    def _told(
        self,
        member: _Member,
        model: nn.Module,
        test: Images,
        measured: dict[str, float],
        test_guesses: npt.NDArray[np.int64],
    ) -> dict[str, float]:
        context, recipe = member.context, self.recipe
        if member.best:
            context.fact("kept_epoch", str(member.best["epoch"]))
            member.metrics = member.best["metrics"]
        assert member.guesses is not None
        guesses = {"val": member.guesses, "test": test_guesses}
        kept = member.best.get("epoch", recipe.train.epochs)
        conclude(context, recipe, guesses, test, member.events, epoch=kept)
        seen = recipe.train.epochs * sum(map(len, self._order(member, 1)))
        cost = {"train_seconds": member.seconds, "images_per_s": seen / member.seconds}
        return member.metrics | measured | described(model, recipe.data, context) | cost


def losses_of(logits: Tensor, labels: Tensor, train: TrainSettings) -> Tensor:
    """Return the loss of each member [K] for logits [K, B, classes] and labels [K, B].

    Their sum is what is minimised: of it, each weight has the gradient that it has of its own member's loss.
    """
    return _each(logits, labels, train.label_smoothing).mean(dim=1)


def _each(logits: Tensor, labels: Tensor, smoothing: float = 0.0) -> Tensor:
    losses = cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none", label_smoothing=smoothing)
    return losses.view(labels.shape)


def _started(context: Context, recipe: Recipe, fresh: dict[str, Any]) -> _Member:
    """Return a member where its last checkpoint was, or at its beginning."""
    member = _Member(context, recipe.events(context), fresh)
    if state := context.resume():
        member.state = {"model": state["model"], "optimizer": state["optimizer"]}
        member.done, member.seconds, member.best = state["epoch"], state["seconds"], state.get("best", {})
    return member


def _stacked(draws: Sequence[Draws]) -> Draws:
    return Draws(*(torch.cat([getattr(each, name.name) for each in draws]) for name in fields(Draws)))


def _diverged(member: _Member) -> Diverged:
    assert member.diverged is not None
    return member.diverged
