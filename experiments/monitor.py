"""What is printed and logged about a run beside its losses: parameters, memory, arithmetic, a profile."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

__all__ = ["device_memory", "memory_per_device", "parameter_table", "profiler", "speeds"]


def parameter_table(params: Any) -> str:
    """Returns the arrays and parameters of each top-level module of a tree, as lines of text.

    >>> print(parameter_table({"Dense_0": {"kernel": np.ones((2, 3)), "bias": np.ones(3)}, "scale": np.ones(4)}))
    module       arrays  parameters
    Dense_0           2           9
    scale             1           4
    all               3          13
    """
    tree = params
    while isinstance(tree, Mapping) and len(tree) == 1 and isinstance(next(iter(tree.values())), Mapping):
        tree = next(iter(tree.values()))  # such as {"params": ...}
    parts = tree if isinstance(tree, Mapping) else {"parameters": tree}
    rows = [(str(name), jax.tree.leaves(part)) for name, part in parts.items()]
    rows.append(("all", jax.tree.leaves(params)))
    width = max(10, *(len(name) for name, _ in rows))
    lines = [f"{'module':{width}} {'arrays':>8} {'parameters':>11}"]
    for name, leaves in rows:
        lines.append(f"{name:{width}} {len(leaves):8} {sum(int(np.prod(leaf.shape)) for leaf in leaves):11,}")
    return "\n".join(lines)


def speeds(
    steps_per_second: float, batch_size: int, flops_per_step: float | None, peak_flops: float | None
) -> dict[str, float]:
    """Returns examples and FLOP/s per second, of all devices and per device, and the share of the devices' peak.

    Args:
      steps_per_second: training steps.
      batch_size: of all devices.
      flops_per_step: of all devices, see `flops.count_in`; None leaves out what is computed from it.
      peak_flops: of one device; None leaves out the share.

    >>> speeds(2.0, 8, 1e9, 1e10)["flops_utilization"] * jax.device_count()
    0.2
    """
    devices = jax.device_count()
    values = {"examples_per_second": steps_per_second * batch_size}
    if flops_per_step is not None:
        values["flops_per_second"] = steps_per_second * flops_per_step
    values |= {f"{name}_per_device": value / devices for name, value in values.items()}
    if flops_per_step is not None and peak_flops:
        values["flops_utilization"] = values["flops_per_second_per_device"] / peak_flops
    return values


def memory_per_device(compiled: Any) -> str:
    """Returns the memory that a compiled program needs on each device, as text; "" where it is not known."""
    try:
        found = compiled.memory_analysis()
        held, temporary = found.argument_size_in_bytes, found.temp_size_in_bytes
    except Exception:  # not implemented by every backend
        return ""
    return f"memory per device: {held / 1e6:,.1f} MB of arguments, {temporary / 1e6:,.1f} MB while a step is computed"


def device_memory() -> dict[str, float]:
    """Returns memory in use and its peak, in bytes, of the fullest local device; {} where it is not reported."""
    held = [stats for stats in (device.memory_stats() for device in jax.local_devices()) if stats]
    names = {"bytes_in_use": "memory_bytes", "peak_bytes_in_use": "memory_peak_bytes"}
    return {
        name: float(max(stats[field] for stats in held))
        for field, name in names.items()
        if held and all(field in stats for stats in held)
    }


def profiler(span: str | None, folder: Any) -> Callable[[int], None]:
    """Returns at(step), to be called with the number of steps that are done: writes a trace of the steps of a span.

    Args:
      span: "START:STOP", the trace begins after START steps and ends after STOP; None for no trace.
      folder: for TensorBoard's profile plugin, Perfetto or XProf.

    Raises:
      ValueError: unless span has this form, with START below STOP.
    """
    if span is None:
        return lambda step: None
    match = re.fullmatch(r"(\d+):(\d+)", span)
    if match is None or not int(match[1]) < int(match[2]):
        raise ValueError(f"--profile must be START:STOP, two numbers of steps, such as 100:110; got {span!r}")
    first, last = int(match[1]), int(match[2])
    running = False

    def at(step: int) -> None:
        nonlocal running
        if running and not first <= step < last:
            jax.profiler.stop_trace()
            running = False
            print(f"profile of the steps up to {step} in {folder}")
        elif not running and first <= step < last:
            jax.profiler.start_trace(str(folder))
            running = True

    return at
