"""The network that benchmarks train."""

from __future__ import annotations

from torch import Tensor, nn


class Residual(nn.Module):
    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.body = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.body(x)
        return out


def resnet9(
    *, channels: int, classes: int, widths: tuple[int, int, int, int] = (16, 32, 64, 64), pool: int = 4
) -> nn.Module:
    """Return a narrow ResNet-9 (after Page, "How to train your ResNet"), for images of 32×32 with ``pool`` 4."""

    def conv(inputs: int, outputs: int) -> nn.Sequential:
        return nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)
        )

    first, second, third, fourth = widths
    return nn.Sequential(
        conv(channels, first),
        nn.Sequential(conv(first, second), nn.MaxPool2d(2)),
        Residual(conv(second, second), conv(second, second)),
        nn.Sequential(conv(second, third), nn.MaxPool2d(2)),
        nn.Sequential(conv(third, fourth), nn.MaxPool2d(2)),
        Residual(conv(fourth, fourth), conv(fourth, fourth)),
        nn.MaxPool2d(pool),
        nn.Flatten(),
        nn.Linear(fourth, classes),
    )
