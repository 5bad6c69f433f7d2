"""Communication and time of a training step on paper, for meshes of data, fsdp and tensor parallelism.

    python -m experiments.benchmarks.on_paper

prints the table of docs/scaling.md, whose assumptions are the defaults here.
"""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["CHIPS", "DIT_XL", "Chip", "Network", "Step", "step"]


class Network(NamedTuple):
    """A transformer: number of parameters and blocks, tokens of an image, features of a token, FLOPs of an image.

    The FLOPs are those of the forward pass.
    """

    parameters: float
    depth: int
    tokens: int
    hidden_size: int
    flops: float


class Chip(NamedTuple):
    """A device: peak FLOP/s in bfloat16, bytes per second that it receives over fast and slow links, fast neighbours.

    Attributes:
      flops: of dense matrix products.
      fast, slow: bytes per second and device, in one direction; slow beyond `fast_devices`.
      fast_devices: number of devices that are joined by fast links.
    """

    flops: float
    fast: float
    slow: float
    fast_devices: int


class Step(NamedTuple):
    """A step on one device: seconds of computation, bytes received, and their seconds."""

    compute: float
    gathered: float
    reduced: float
    activations: float
    communication: float

    @property
    def overlapped(self) -> float:
        """The computation's share of the step's time, if all communication overlaps with it."""
        return self.compute / max(self.compute, self.communication)

    @property
    def exposed(self) -> float:
        """The computation's share of the step's time, if no communication overlaps with it."""
        return self.compute / (self.compute + self.communication)


DIT_XL = Network(parameters=674.8e6, depth=28, tokens=256, hidden_size=1152, flops=237.3e9)
CHIPS = {  # from the vendors' data sheets
    "TPU v5p": Chip(459e12, 540e9, 3e9, 8960),
    "TPU v5e": Chip(197e12, 180e9, 3e9, 256),
    "H100, 8 a node": Chip(989e12, 450e9, 50e9, 8),
}


def step(
    network: Network,
    chip: Chip,
    data: int,
    fsdp: int,
    tensor: int = 1,
    *,
    images: float = 8,
    utilisation: float = 0.45,
    bandwidth: float = 0.6,
    gathered_bytes: int = 4,
) -> Step:
    """Returns a training step with recomputed activations, for `images` per group of `tensor` devices.

    On each device, with P parameters:

        gathered     2 P gathered_bytes / tensor (fsdp - 1) / fsdp       all-gather, forward and backward
        reduced      4 P / tensor (fsdp - 1) / fsdp                      reduce-scatter of float32 gradients
                     + 2 * 4 P / (fsdp tensor) (data - 1) / data         all-reduce of the parts over data
        activations  6 depth images tokens hidden 2 * 2 (tensor - 1) / tensor    all-reduces in bfloat16, two per block
                                                                         forward, recomputed and backward

    The all-reduce over data is over slow links if the mesh has more than `fast_devices` devices.

    Args:
      network, chip: what is trained, and on what.
      data, fsdp, tensor: sizes of the mesh.
      images: in a batch, per device of data and fsdp.
      utilisation: share of the peak FLOP/s that a device reaches without communication.
      bandwidth: share of the links' bandwidth that collectives reach.
      gathered_bytes: of a parameter when it is gathered: 4, or 2 for bfloat16.

    >>> one, many = (step(DIT_XL, CHIPS["TPU v5p"], data, 64) for data in (1, 64))
    >>> one.compute == many.compute, round(one.gathered / 1e9, 2), many.reduced > one.reduced
    (True, 5.31, True)
    """
    share = (fsdp - 1) / fsdp
    gathered = 2 * network.parameters * gathered_bytes / tensor * share
    scattered = 4 * network.parameters / tensor * share
    summed = 8 * network.parameters / (fsdp * tensor) * (data - 1) / data
    activations = 24 * network.depth * images * network.tokens * network.hidden_size * (tensor - 1) / tensor
    between = chip.fast if data * fsdp * tensor <= chip.fast_devices else chip.slow
    seconds = (gathered + scattered + activations) / (bandwidth * chip.fast) + summed / (bandwidth * between)
    compute = 4 * network.flops * images / tensor / (utilisation * chip.flops)
    return Step(compute, gathered, scattered + summed, activations, seconds)


def main() -> None:
    header = ("chip", "chips", "data x fsdp x tensor", "images per chip", "compute", "received", "communication")
    print(_row((*header, "efficiency")))
    print(_row(["---"] * (len(header) + 1)))
    for name, chip in CHIPS.items():
        for chips in (64, 1024, 4096):
            fsdp = min(chips, chip.fast_devices, 64)
            for images in (8, 32):
                found = step(DIT_XL, chip, chips // fsdp, fsdp, images=images)
                received = found.gathered + found.reduced + found.activations
                print(
                    _row((
                        name, chips, f"{chips // fsdp} x {fsdp} x 1", images, f"{1e3 * found.compute:.0f} ms",
                        f"{received / 1e9:.1f} GB", f"{1e3 * found.communication:.0f} ms",
                        f"{found.exposed:.0%} to {found.overlapped:.0%}",
                    ))
                )  # fmt: skip


def _row(cells: object) -> str:
    return f"| {' | '.join(map(str, cells))} |"  # type: ignore[call-overload]


if __name__ == "__main__":
    main()
