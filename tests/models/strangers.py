"""Networks of strangers, each with a habit that makes its last convolution hard to find."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class OutOfOrder(nn.Module):
    """Registers the convolution that runs last first, and one that never runs last."""

    def __init__(self) -> None:
        super().__init__()
        self.tail = nn.Conv2d(4, 3, 3, 1, 1)
        self.head = nn.Conv2d(3, 4, 3, 1, 1)
        self.unused = nn.Conv2d(4, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.tail(input=F.relu(self.head(x)))
        return out


class Listed(nn.Module):
    """Goes through a list of convolutions backwards, with batch normalisation."""

    def __init__(self) -> None:
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(3, 3, 3, 1, 1) for _ in range(3))
        self.norm = nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        for conv in reversed(self.convs):
            x = torch.tanh(self.norm(conv(x)))
        return x


class Recurrent(nn.Module):
    """Runs one convolution three times, and another before, between and under a second name."""

    def __init__(self) -> None:
        super().__init__()
        self.other = nn.Conv2d(3, 3, 3, 1, 1)
        self.shared = nn.Conv2d(3, 3, 3, 1, 1)
        self.alias = self.shared

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.shared(x))
        x = torch.tanh(self.shared(self.other(x)))
        return torch.tanh(self.alias(x) + 1)


class Untidy(nn.Module):
    """Leaves traces wherever it runs."""

    count: Tensor
    seen: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, 1, 1)
        self.norm = nn.BatchNorm2d(3)
        self.register_buffer("count", torch.zeros(()))
        self.register_buffer("seen", torch.zeros(()))
        self.norm.eval()

    def forward(self, x: Tensor) -> Tensor:
        self.count = self.count + 1
        self.seen.add_(1)
        self.features = self.conv(x + 0.1 * torch.rand_like(x))
        out: Tensor = self.norm(F.dropout(self.features, training=True))
        return out


class Overwriting(nn.Module):
    """Writes into what its convolution got."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        features = x * 2
        result: Tensor = self.conv(features)
        return result + features.add_(1)
