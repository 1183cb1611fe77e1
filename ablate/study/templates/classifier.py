"""The network of starter.yaml."""

from torch import nn

from ablate.train.classification import train_classifier


def train(settings, context):
    def build(data):
        width = settings["model"]["width"]
        norm = nn.BatchNorm2d(width) if settings["model"]["norm"] == "batch" else nn.Identity()
        return nn.Sequential(
            nn.Conv2d(data.channels, width, 3, padding=1),
            norm,
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(width * (data.size // 2) ** 2, data.classes),
        )

    return train_classifier(settings, context, build)
