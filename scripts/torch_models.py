# pyright: reportMissingImports=false, reportUntypedBaseClass=false
"""The networks of bench_step.py in PyTorch, with the shapes of those in mtljax.models, and its MTL libraries' steps."""

import importlib
import importlib.util
import itertools
import sys
import types
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

_FOUND = importlib.util.find_spec("LibMTL")
_LIBMTL = "" if _FOUND is None else str(Path(str(_FOUND.origin)).parent)


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


def _placed(
    encoder: nn.Module, features: int, inputs: np.ndarray, labels: np.ndarray, device: str
) -> tuple[nn.Module, nn.ModuleList, torch.Tensor, torch.Tensor]:
    """The encoder, linear heads and the batch, on the device."""
    x = torch.tensor(np.ascontiguousarray(np.moveaxis(inputs, -1, 1)), device=device)
    y = torch.tensor(labels, dtype=torch.long, device=device)
    return encoder.to(device), nn.ModuleList(nn.Linear(features, 10) for _ in labels).to(device), x, y


def _stepping(model: nn.Module, losses: Callable[[], list[torch.Tensor]], backward: Callable[..., Any]) -> Any:
    """A step of SGD, of no arguments, that waits for the device."""
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4)

    def step() -> None:
        optimizer.zero_grad()
        backward(losses())
        optimizer.step()
        if next(model.parameters()).is_cuda:
            torch.cuda.synchronize()

    return step


def summed_step(
    encoder: nn.Module, features: int, inputs: np.ndarray, labels: np.ndarray, device: str
) -> Callable[[], Any]:
    """One step on the sum of the losses.

    Args:
      encoder: the network below the heads.
      features: size of the representation.
      inputs: (B, H, W, C) images.
      labels: (K, B) classes of 10.
      device: "cpu" or "cuda".

    Returns:
      The step, of no arguments; it waits for the device.
    """
    encoder, heads, x, y = _placed(encoder, features, inputs, labels, device)

    def losses() -> list[torch.Tensor]:
        z = encoder(x)
        return [functional.cross_entropy(head(z), target) for head, target in zip(heads, y, strict=True)]

    return _stepping(nn.ModuleList([encoder, heads]), losses, lambda losses: torch.stack(losses).sum().backward())


def torchjd_step(
    encoder: nn.Module, features: int, inputs: np.ndarray, labels: np.ndarray, device: str
) -> Callable[[], Any]:
    """One step of TorchJD's PCGrad with its default settings; arguments as in `summed_step`."""
    from torchjd.aggregation import PCGrad
    from torchjd.autojac import jac_to_grad, mtl_backward

    encoder, heads, x, y = _placed(encoder, features, inputs, labels, device)
    aggregator, representation = PCGrad(), []

    def losses() -> list[torch.Tensor]:
        representation[:] = [encoder(x)]
        return [functional.cross_entropy(head(*representation), target) for head, target in zip(heads, y, strict=True)]

    def backward(losses: list[torch.Tensor]) -> None:
        mtl_backward(losses, features=representation[0])
        jac_to_grad(list(encoder.parameters()), aggregator)

    return _stepping(nn.ModuleList([encoder, heads]), losses, backward)


def _libmtl_module(name: str) -> Any:
    """A module of LibMTL without its packages, which import all their modules, some for a torchvision long gone."""
    parts = ["LibMTL", *name.split(".")]
    for end in range(1, len(parts)):
        package = ".".join(parts[:end])
        if package not in sys.modules:
            sys.modules[package] = types.ModuleType(package)
            sys.modules[package].__path__ = [str(Path(_LIBMTL).joinpath(*parts[1:end]))]
    return importlib.import_module(f"LibMTL.{name}")


def libmtl_step(
    encoder: nn.Module, features: int, inputs: np.ndarray, labels: np.ndarray, device: str
) -> Callable[[], Any]:
    """One step of LibMTL's PCGrad on hard parameter sharing, as its trainer makes it; arguments as in `summed_step`."""
    hps, pcgrad = map(_libmtl_module, ("architecture.HPS", "weighting.PCGrad"))
    encoder, heads, x, y = _placed(encoder, features, inputs, labels, device)
    tasks = [f"t{k:02}" for k in range(len(labels))]
    decoders = nn.ModuleDict(zip(tasks, heads, strict=True))

    class Model(hps.HPS, pcgrad.PCGrad):
        def zero_grad_share_params(self) -> None:
            encoder.zero_grad(set_to_none=False)  # PyTorch 2 would drop the gradients that LibMTL writes into

    model = Model(tasks, lambda: encoder, decoders, False, False, torch.device(device))

    def losses() -> list[torch.Tensor]:
        outputs = model(x)
        return [functional.cross_entropy(outputs[task], target) for task, target in zip(tasks, y, strict=True)]

    return _stepping(model, losses, model.backward)
