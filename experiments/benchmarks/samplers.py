"""Section `samplers`: what a sampler costs beside its network, and with one."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ml_collections import ConfigDict

from experiments.benchmarks import networks
from experiments.benchmarks.networks import HERE, LAYOUTS
from experiments.benchmarks.work import Contender, Row

DETERMINISTIC = "experiments.benchmarks.jax_samplers:deterministic"
TORCH = "experiments.benchmarks.peers.torch_samplers:sample"
ARTIFEX = "experiments.benchmarks.peers.artifex_samplers:sample"


def rows(config: ConfigDict) -> Iterator[Row]:
    """Yields rows for solvers, for deterministic and noisy sampling with a network that is free, and with a UNet."""
    section = config.samplers
    given = {"shape": list(section.shape), "steps": section.steps}
    yield from (products(solver, given) for solver in ("ddim", "euler", "dpmpp_2m"))
    yield Row(
        f"DDIM, {section.steps} steps, network 0.1 x",
        (
            Contender(f"{HERE}, solver a constant", DETERMINISTIC, {**given, "constant": True}),
            Contender(f"{HERE}, solver an argument", DETERMINISTIC, given),
            Contender("scan by hand", DETERMINISTIC, {**given, "by_hand": True}),
            Contender("diffusers", TORCH, given, package="diffusers", peer=True),
            Contender("artifex", ARTIFEX, {**given, "deterministic": True}, package="artifex", peer=True),
        ),
    )
    yield noisy(given)
    yield with_network(section.network, section.batch, section.network_steps)


def products(solver: str, given: dict[str, Any]) -> Row:
    """Returns the row of a solver's table against its products by hand."""
    ways = {HERE: "table", "the same products by hand": "hand"}
    if solver == "ddim":
        ways["the shortest form by hand"] = "shortest"
    target = "experiments.benchmarks.jax_samplers:products"
    contenders = (Contender(name, target, {**given, "solver": solver, "way": way}) for name, way in ways.items())
    return Row(f"{solver}, {given['steps']} rows, denoiser of two products", tuple(contenders))


def noisy(given: dict[str, Any]) -> Row:
    """Returns the row of ancestral sampling: keys, generators, a scan by hand, peers."""
    ours = "experiments.benchmarks.jax_samplers:noisy"
    kinds = [("threefry2x32", "threefry"), ("rbg", "rbg")]
    contenders = [
        Contender(f"{HERE}, {count}, {word}", ours, {**given, "each": each, "generator": generator})
        for generator, word in kinds
        for count, each in (("one key", False), ("a key an example", True))
    ]
    contenders += [
        Contender(f"scan by hand, one key, {word}", ours, {**given, "generator": generator, "by_hand": True})
        for generator, word in kinds
    ]
    contenders += [
        Contender("diffusers DDPM", TORCH, {**given, "scheduler": "DDPMScheduler"}, package="diffusers", peer=True),
        Contender("diffusers DDIM, eta 1", TORCH, {**given, "eta": 1.0}, package="diffusers", peer=True),
        Contender("artifex", ARTIFEX, given, package="artifex", peer=True),
    ]
    same = ("scan by hand, one key, threefry",)  # the others draw other noise
    return Row(f"ancestral, {given['steps']} steps, network 0.1 x", tuple(contenders), same=same)


def with_network(name: str, batch: int, steps: int) -> Row:
    """Returns the row of DDIM with a network, against its evaluations alone and against diffusers."""
    folder = networks.arguments(name, batch)
    given = {"folder": folder["folder"], "shape": folder["shape"], "steps": steps}
    theirs = [(label, layout) for label, layout in LAYOUTS.items() if layout != "compiled"]
    return Row(
        f"DDIM, {steps} steps, {name}, batch {batch}",
        (
            Contender(HERE, "experiments.benchmarks.jax_samplers:network", given),
            Contender(f"{steps} evaluations of {HERE}", "experiments.benchmarks.jax_samplers:forwards", given),
            *(
                Contender(f"diffusers, {label}", TORCH, {**given, "layout": layout}, package="diffusers", peer=True)
                for label, layout in theirs
            ),
        ),
        prepare=networks.saved(name),
    )
