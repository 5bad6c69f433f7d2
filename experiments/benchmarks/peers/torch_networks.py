"""The same networks in torch: from diffusers, or in the authors' layout; evaluated and trained."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from experiments.benchmarks import inputs
from experiments.benchmarks.work import Work

__all__ = ["LEARNING_RATE", "forward", "load", "tensors", "train"]

LEARNING_RATE = 1e-4


def load(folder: str, layout: str) -> tuple[torch.nn.Module, Callable[..., torch.Tensor]]:
    """Returns (network, forward), with forward(x [B, C, H, W], t, labels) -> output.

    Args:
      folder: a folder written by `pretrained.save`.
      layout: eager, channels_last or compiled.
    """
    kind = json.loads((Path(folder) / "config.json").read_text())["_class_name"]
    if kind == "UViT":
        from experiments.benchmarks.peers import torch_uvit

        network = torch_uvit.load(folder)
    else:
        import diffusers

        network = getattr(diffusers, kind).from_pretrained(folder)
    network.eval()  # no label dropout, as in the JAX contender
    if layout == "channels_last":
        network = network.to(memory_format=torch.channels_last)
    called = torch.compile(network) if layout == "compiled" else network

    def forward(x: torch.Tensor, t: torch.Tensor, labels: torch.Tensor | None = None) -> torch.Tensor:
        if kind == "UViT":
            return called(x, t)
        return called(x, t, class_labels=labels).sample if labels is not None else called(x, t).sample

    return network, forward


def tensors(shape: Sequence[int], num_classes: int, layout: str) -> list[torch.Tensor | None]:
    """Returns x, t, labels and noise, channels first."""
    given = inputs.draw(shape, num_classes)
    form = torch.channels_last if layout == "channels_last" else torch.contiguous_format
    x, noise = (torch.from_numpy(a.transpose(0, 3, 1, 2).copy()).to(memory_format=form) for a in (given.x, given.noise))
    t = torch.from_numpy(given.t).long()
    return [x, t, None if given.labels is None else torch.from_numpy(given.labels).long(), noise]


def forward(folder: str, shape: Sequence[int], num_classes: int = 0, layout: str = "eager") -> Work:
    """One forward pass of the network saved in a folder; the output has channels last."""
    _, call = load(folder, layout)
    x, t, labels, _ = tensors(shape, num_classes, layout)

    @torch.no_grad()
    def run() -> torch.Tensor:
        return call(x, t, labels)

    return Work(run=run, output=lambda: run().numpy().transpose(0, 2, 3, 1))


def train(folder: str, shape: Sequence[int], num_classes: int = 0, layout: str = "eager") -> Work:
    """Trains the network saved in a folder by fused Adam on one batch; the output is the first two losses."""
    network, call = load(folder, layout)
    x, t, labels, noise = tensors(shape, num_classes, layout)
    optimizer = torch.optim.Adam(network.parameters(), LEARNING_RATE, fused=True)
    losses: list[float] = []

    def run() -> None:
        optimizer.zero_grad(set_to_none=True)
        loss: Any = torch.nn.functional.mse_loss(call(x, t, labels), noise)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())

    return Work(run=run, output=lambda: np.array(losses[:2]))
