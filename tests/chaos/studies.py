"""The two studies that chaos is let loose on."""

from __future__ import annotations

from pathlib import Path

from tests.studies import write_study

EPOCHS = 16

# by the toy task of tests/studies: no torch in it, a checkpoint and a record every epoch
TOY = """
schema: ablate/v1
name: toy
task: toy:train
metrics: {{acc: {{goal: max}}}}
settings: {{level: 1, epochs: {epochs}, pause: 0.05}}
steps:
  - name: two
    set: {{level: 2}}
  - name: three
    set: {{level: 3}}
  - name: four
    set: {{level: 4}}
seeds: {seeds}
resources: {{retries: 0}}
"""

TRAINING = """
schema: ablate/v1
name: digits
task: digits:train
metrics: {{val_acc: {{goal: max}}}}
settings:
  loop: house
  data: {{name: digits, size: null, split_seed: 0, validation: 300, subset: null}}
  augment: {{flip: false, crop: 1}}
  normalise: true
  model: {{width: 8, dropout: 0.1}}
  train: {{epochs: {epochs}, batch: 32, optimizer: sgd, momentum: 0.9, lr: 0.05, weight_decay: 0.001, schedule: cosine}}
steps:
  - name: adam
    set: {{train.optimizer: adam, train.lr: 0.001, train.momentum: 0.0}}
  - name: adamw
    set: {{loop: own}}
seeds: {seeds}
resources: {{retries: 0}}
"""

# the loop that comes with ablate, and one of a user's own with AdamW and a scheduler that has a state
TRAINING_TASK = """
import io

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from ablate.train.augment import Augmenter, AugmentSettings, normalise
from ablate.train.classification import batches_of_epoch, evaluate, train_classifier
from ablate.train.data import load
from ablate.train.seeding import stream_seed


def network(data, width, dropout):
    return nn.Sequential(
        nn.Conv2d(data.channels, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(width, 2 * width, 3, padding=1), nn.BatchNorm2d(2 * width), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Dropout(dropout), nn.Linear(2 * width * (data.size // 4) ** 2, data.classes),
    )


def train(settings, context):
    settings, built = dict(settings), []

    def build(data):
        built.append(network(data, **settings["model"]))
        return built[-1]

    loop = {"house": train_classifier, "own": own_loop}[settings.pop("loop")]
    metrics = loop(settings, context, build)
    weights = io.BytesIO()
    torch.save(built[0].state_dict(), weights)
    context.artifact("weights.pt", weights.getvalue())
    return metrics


def own_loop(settings, context, build):
    chosen = settings["train"]
    data = load(settings["data"])
    augmenter = Augmenter(data.train.images, AugmentSettings.read(settings["augment"], "augment"))
    torch.manual_seed(stream_seed(context.seed, "init"))
    model = build(data)
    optimizer = torch.optim.AdamW(model.parameters(), lr=chosen["lr"], weight_decay=0.01)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.01, total_steps=chosen["epochs"])
    parts = {"model": model, "optimizer": optimizer, "scheduler": scheduler}

    def logits_of(images):
        return model(normalise(images, data.mean, data.std))

    state = context.resume() or {"epoch": 0}
    metrics = state.get("metrics", {})  # where only the last word was missing
    for name, part in parts.items():
        if name in state:
            part.load_state_dict(state[name])
    for epoch in range(state["epoch"] + 1, chosen["epochs"] + 1):
        model.train()
        draws = augmenter.draws(context.generator("augment", epoch))
        torch.manual_seed(stream_seed(context.seed, "noise", epoch))
        for batch in batches_of_epoch(len(data.train), chosen["batch"], context.generator("order", epoch)):
            context.raise_if_stopped()
            loss = cross_entropy(logits_of(augmenter.batch(batch, draws)), data.train.labels[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        scheduler.step()
        model.eval()
        metrics, _ = evaluate(logits_of, data.validation, data.classes, chosen["batch"], "val")
        context.record(epoch=epoch, epochs=chosen["epochs"], **metrics)
        kept = {name: part.state_dict() for name, part in parts.items()}
        context.checkpoint(kept | {"epoch": epoch, "metrics": metrics})
    return metrics
"""


def write_toy(folder: Path, *, seeds: int, isolation: str = "process") -> Path:
    return write_study(folder, f"{TOY.format(seeds=seeds, epochs=EPOCHS)}execution: {{isolation: {isolation}}}\n")


def write_training(folder: Path, *, seeds: int) -> Path:
    (folder / "digits.py").write_text(TRAINING_TASK)
    path = folder / "digits.yaml"
    path.write_text(TRAINING.format(seeds=seeds, epochs=EPOCHS))
    return path
