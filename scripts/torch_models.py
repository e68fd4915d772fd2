# pyright: reportMissingImports=false, reportUntypedBaseClass=false
"""The networks of bench_step.py in PyTorch, with the shapes of those in mtljax.models, and a step of TorchJD."""

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional
from torchjd import aggregation
from torchjd.autojac import jac_to_grad, mtl_backward


def lenet(inputs: Sequence[int]) -> nn.Module:
    """Two convolutions and a dense layer, for 36 x 36 images."""
    layers = [
        nn.Conv2d(inputs[-1], 10, 9),
        nn.MaxPool2d(2),
        nn.ReLU(),
        nn.Conv2d(10, 20, 5),
        nn.MaxPool2d(2),
        nn.ReLU(),
    ]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(500, 50), nn.ReLU())


def mlp(inputs: Sequence[int]) -> nn.Module:
    """Three dense layers."""
    sizes, layers = (int(np.prod(inputs)), 512, 512, 256), [nn.Flatten()]
    for fan_in, fan_out in itertools.pairwise(sizes):
        layers += [nn.Linear(fan_in, fan_out), nn.ReLU()]
    return nn.Sequential(*layers)


class _Block(nn.Module):
    def __init__(self, fan_in: int, channels: int, stride: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(fan_in, channels, 3, stride, 1, bias=False)
        self.second = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.norms = nn.ModuleList(nn.GroupNorm(8, channels) for _ in range(3 if stride > 1 else 2))
        self.skip = nn.Conv2d(fan_in, channels, 1, stride, bias=False) if stride > 1 else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.norms[1](self.second(functional.relu(self.norms[0](self.first(x)))))
        return functional.relu(y + (x if self.skip is None else self.norms[2](self.skip(x))))


class _ResNet(nn.Module):
    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(channels, width, 3, 1, 1, bias=False), nn.GroupNorm(8, width), nn.ReLU())
        blocks, fan_in = [], width
        for stage in range(4):
            for block in range(2):
                blocks.append(_Block(fan_in, width * 2**stage, 2 if stage and not block else 1))
                fan_in = width * 2**stage
        self.blocks = nn.Sequential(*blocks)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.blocks(self.stem(x)).mean(dim=(2, 3))


def resnet18(inputs: Sequence[int]) -> nn.Module:
    """ResNet-18 of width 32 with group normalisation and the small stem."""
    return _ResNet(inputs[-1], 32)


def torchjd_step(
    encoder: nn.Module, features: int, inputs: np.ndarray, labels: np.ndarray, method: str, device: str
) -> Callable[[], Any]:
    """One step of TorchJD with its default settings, then of SGD.

    Args:
      encoder: the network below the heads.
      features: size of the representation.
      inputs: (B, H, W, C) images.
      labels: (K, B) classes of 10.
      method: name of an aggregator, or "sum" for the gradient of the summed loss.
      device: "cpu" or "cuda".

    Returns:
      The step, of no arguments; it waits for the device.
    """
    x = torch.tensor(np.moveaxis(inputs, -1, 1), device=device)
    y = torch.tensor(labels, dtype=torch.long, device=device)
    encoder = encoder.to(device)
    heads = nn.ModuleList(nn.Linear(features, 10) for _ in labels).to(device)
    parameters = [*encoder.parameters(), *heads.parameters()]
    optimizer = torch.optim.SGD(parameters, lr=1e-4)
    aggregator = None if method == "sum" else getattr(aggregation, method)()

    def step() -> None:
        optimizer.zero_grad()
        z = encoder(x)
        losses = [functional.cross_entropy(head(z), target) for head, target in zip(heads, y, strict=True)]
        if aggregator is None:
            torch.stack(losses).sum().backward()
        else:
            mtl_backward(losses, features=z)
            jac_to_grad(list(encoder.parameters()), aggregator)
        optimizer.step()
        if device != "cpu":
            torch.cuda.synchronize()

    return step
