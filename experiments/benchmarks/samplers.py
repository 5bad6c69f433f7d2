"""Section `samplers`: the cost of a sampler with a network that is almost free, and with a real one."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ml_collections import ConfigDict

from experiments.benchmarks import networks
from experiments.benchmarks.networks import LAYOUTS, OURS
from experiments.benchmarks.work import Comparison, Contender

__all__ = ["ARTIFEX", "DETERMINISTIC", "TORCH", "comparisons", "noisy", "products", "with_network"]

DETERMINISTIC = "experiments.benchmarks.jax_samplers:deterministic"
TORCH = "experiments.benchmarks.peers.torch_samplers:sample"
ARTIFEX = "experiments.benchmarks.peers.artifex_samplers:sample"


def comparisons(config: ConfigDict) -> Iterator[Comparison]:
    """Yields comparisons of solvers, of deterministic and noisy sampling with a trivial network, and with a UNet."""
    section = config.samplers
    kwargs = {"shape": list(section.shape), "steps": section.steps}
    yield from (products(solver, kwargs) for solver in ("ddim", "euler", "dpmpp_2m"))
    yield Comparison(
        f"DDIM, {section.steps} steps, network 0.1 x",
        (
            Contender(f"{OURS}, solver a constant", DETERMINISTIC, {**kwargs, "constant": True}),
            Contender(f"{OURS}, solver an argument", DETERMINISTIC, kwargs),
            Contender("scan by hand", DETERMINISTIC, {**kwargs, "by_hand": True}),
            Contender("diffusers", TORCH, kwargs, package="diffusers", peer=True),
            Contender("artifex", ARTIFEX, {**kwargs, "deterministic": True}, package="artifex", peer=True),
        ),
    )
    yield noisy(kwargs)
    yield with_network(section.network, section.batch, section.network_steps)


def products(solver: str, kwargs: dict[str, Any]) -> Comparison:
    """Returns the comparison of a solver with the same products written by hand."""
    methods = {OURS: "table", "the same products by hand": "hand"}
    if solver == "ddim":
        methods["the shortest form by hand"] = "shortest"
    target = "experiments.benchmarks.jax_samplers:products"
    contenders = (
        Contender(name, target, {**kwargs, "solver": solver, "method": method}) for name, method in methods.items()
    )
    return Comparison(f"{solver}, {kwargs['steps']} steps, denoiser of two products", tuple(contenders))


def noisy(kwargs: dict[str, Any]) -> Comparison:
    """Returns the comparison of ancestral sampling: keys, generators, a hand-written scan, peers."""
    ours = "experiments.benchmarks.jax_samplers:noisy"
    kinds = [("threefry2x32", "threefry"), ("rbg", "rbg")]
    contenders = [
        Contender(f"{OURS}, {keys}, {word}", ours, {**kwargs, "key_per_example": each, "generator": generator})
        for generator, word in kinds
        for keys, each in (("one key", False), ("one key per example", True))
    ]
    contenders += [
        Contender(f"scan by hand, one key, {word}", ours, {**kwargs, "generator": generator, "by_hand": True})
        for generator, word in kinds
    ]
    contenders += [
        Contender("diffusers DDPM", TORCH, {**kwargs, "scheduler": "DDPMScheduler"}, package="diffusers", peer=True),
        Contender("diffusers DDIM, eta 1", TORCH, {**kwargs, "eta": 1.0}, package="diffusers", peer=True),
        Contender("artifex", ARTIFEX, kwargs, package="artifex", peer=True),
    ]
    same = ("scan by hand, one key, threefry",)  # the other contenders draw different noise
    return Comparison(f"ancestral, {kwargs['steps']} steps, network 0.1 x", tuple(contenders), same=same)


def with_network(name: str, batch: int, steps: int) -> Comparison:
    """Returns the comparison of DDIM with a network, with its evaluations alone, and with diffusers."""
    arguments = networks.arguments(name, batch)
    kwargs = {"folder": arguments["folder"], "shape": arguments["shape"], "steps": steps}
    torch_layouts = [(label, layout) for label, layout in LAYOUTS.items() if layout != "compiled"]
    return Comparison(
        f"DDIM, {steps} steps, {name}, batch {batch}",
        (
            Contender(OURS, "experiments.benchmarks.jax_samplers:network", kwargs),
            Contender(f"{steps} evaluations of {OURS}", "experiments.benchmarks.jax_samplers:forwards", kwargs),
            *(
                Contender(f"diffusers, {label}", TORCH, {**kwargs, "layout": layout}, package="diffusers", peer=True)
                for label, layout in torch_layouts
            ),
        ),
        prepare=networks.saved(name),
    )
