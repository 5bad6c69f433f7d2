"""From config.noise_schedule to noise levels: those of training, the grids of sampling, what the network is told."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from diffusers_fn import grids, noise_schedules, processes
from diffusers_fn.from_config.choices import choose
from diffusers_fn.grids.sources import check_num_steps
from diffusers_fn.levels import Level, log_snr
from diffusers_fn.noise_schedules import NoiseSchedule, level_at
from diffusers_fn.processes import Process

NOISE_SCHEDULES: Mapping[str, Callable[..., np.ndarray]] = {
    "linear": noise_schedules.linear_betas,
    "scaled_linear": noise_schedules.scaled_linear_betas,
    "quadratic": noise_schedules.quadratic_betas,
    "sqrt": noise_schedules.sqrt_betas,
    "sigmoid": noise_schedules.sigmoid_betas,
    "cosine": lambda num_timesteps, beta_start, beta_end: noise_schedules.cosine_betas(num_timesteps),
}

# config.noise_schedule.process: each with the fields that it reads. A field that is None leaves the process its own.
PROCESSES: Mapping[str, tuple[Callable[..., Process], tuple[str, ...]]] = {
    "vp": (processes.vp, ("beta_min", "beta_max")),
    "sub_vp": (processes.sub_vp, ("beta_min", "beta_max")),
    "ve": (processes.ve, ("sigma_min", "sigma_max")),
    "cosine": (processes.cosine, ()),
    "trigonometric": (processes.trigonometric, ()),
    "flow": (processes.flow, ()),
    "edm": (processes.edm, ("sigma_min", "sigma_max")),
}

# What the network is told of a level, from alpha and sigma. "step" is the timestep, counted from 0; of a process on
# [0, 1] it is t times noise_steps.
TIME_LABELS: Mapping[str, Callable[[Level], Any] | None] = {
    "step": None,
    "log_sigma": lambda level: -log_snr(level) / 8,  # log(sigma / alpha) / 4, EDM's c_noise
    "sigma": lambda level: level.sigma / level.alpha,
}

TABLE_GRIDS: Mapping[str, Callable[[NoiseSchedule, int], Level]] = {
    "uniform": grids.linspace,
    "quadratic": grids.quadratic,
    "leading": grids.leading,
    "trailing": grids.trailing,
    "log_snr": grids.uniform_log_snr,
    "karras": lambda schedule, num_steps: grids.karras(num_steps, schedule=schedule),
    "exponential": lambda schedule, num_steps: grids.exponential(num_steps, schedule=schedule),
    "cosine": lambda schedule, num_steps: grids.cosine(num_steps, schedule=schedule),
    "beta": grids.beta,
}


def _trailing(process: Process, num_steps: int) -> Level:
    """Times t_max (1 - i / num_steps): the last step is as wide as the others, and one step starts at t_max."""
    check_num_steps(num_steps)
    return process(process.t_max * (1 - np.arange(num_steps) / num_steps))


PROCESS_GRIDS: Mapping[str, Callable[[Process, int], Level]] = {
    "uniform": grids.uniform_t,
    "quadratic": grids.power_t,
    "trailing": _trailing,
    "log_snr": grids.uniform_log_snr,
    "karras": lambda process, num_steps: grids.karras(num_steps, schedule=process),
    "exponential": lambda process, num_steps: grids.exponential(num_steps, schedule=process),
    "cosine": lambda process, num_steps: grids.cosine(num_steps, schedule=process),
    "beta": grids.beta,
}


class Noise(NamedTuple):
    """The noise levels of a model, labelled as its network wants them.

    Attributes:
      schedule: the table, or None for a continuous process.
      process: the process, or the one through the table; None for a table that ends at pure noise.
      level: u in [0, 1), of any shape -> Level: that of timestep floor(u T), or of t_min + u (t_max - t_min).
      at: log SNR -> Level, clipped to the ends; None for a table that ends at pure noise.
      grid: (name, num_steps) -> Level[num_steps].
    """

    schedule: NoiseSchedule | None
    process: Process | None
    level: Callable[[jax.Array], Level]
    at: Callable[[jax.Array], Level] | None
    grid: Callable[[str, int], Level]


def make_schedule(config: ConfigDict) -> NoiseSchedule:
    """Returns the table that config.noise_schedule describes.

    Raises:
      ValueError: if its name or numbers are not allowed.

    >>> section = ConfigDict({"beta_schedule": "linear", "noise_steps": 1000, "beta_start": 1e-4, "beta_end": 0.02})
    >>> float(make_schedule(ConfigDict({**section, "zero_terminal_snr": False})).betas[-1])
    0.02
    """
    make_betas = choose("noise_schedule.beta_schedule", config.beta_schedule, NOISE_SCHEDULES)
    betas = make_betas(config.noise_steps, config.beta_start, config.beta_end)
    return noise_schedules.make_noise_schedule(
        noise_schedules.zero_terminal_snr(betas) if config.zero_terminal_snr else betas
    )


def make_noise(config: ConfigDict) -> Noise:
    """Returns the noise levels that a whole config describes (noise_schedule; backbone, for what it is told).

    Raises:
      ValueError: if a name or a number is not allowed, or the network cannot be told the label.

    >>> from configs.default import default_config
    >>> noise = make_noise(default_config())
    >>> noise.grid("trailing", 2).t, float(noise.level(jnp.array(0.9999)).t)
    (array([999., 499.]), 999.0)
    """
    _check_labels_fit(config)
    section = config.noise_schedule
    noise = _on_table(section) if section.process == "table" else _on_process(section)
    label = TIME_LABELS[section.time_label]
    if label is None:
        return noise
    relabel = lambda level: Level(level.alpha, level.sigma, label(level))  # noqa: E731
    labelled: dict[str, Any] = {
        name: _then(getattr(noise, name), relabel) for name in ("level", "at", "grid") if getattr(noise, name)
    }
    if noise.process is not None:
        labelled["process"] = noise.process._replace(level=_then(noise.process.level, relabel))
    return noise._replace(**labelled)


def _on_table(section: ConfigDict) -> Noise:
    schedule = make_schedule(section)
    for field, none in {"sigma_min": None, "sigma_max": None, "t_min": None, "t_max": None, "shift": 1}.items():
        if section[field] != none:
            raise ValueError(
                f"config.noise_schedule.{field} is {section[field]}, which a table of betas does not have: leave it "
                f"{none}, or set noise_schedule.process to a continuous one"
            )
    if section.zero_terminal_snr and section.time_label != "step":
        raise ValueError(
            f"config.noise_schedule.time_label is {section.time_label!r}, which is infinite at pure noise, where "
            "zero_terminal_snr ends: set time_label to 'step'"
        )
    process = processes.tabulated(schedule) if schedule.alphas_cumprod[-1] > 0 else None

    def level(u: jax.Array) -> Level:
        return level_at(schedule, jnp.floor(u * section.noise_steps).astype(jnp.int32))

    def grid(name: str, num_steps: int) -> Level:
        return choose("sampler.skip_type", name, TABLE_GRIDS)(schedule, num_steps)

    return Noise(schedule, process, level, None if process is None else _at(process), grid)


def _on_process(section: ConfigDict) -> Noise:
    make, fields = choose("noise_schedule.process", section.process, {"table": None, **PROCESSES})
    process = make(**{field: section[field] for field in fields if section[field] is not None})
    if section.zero_terminal_snr:
        raise ValueError(
            "config.noise_schedule.zero_terminal_snr is for tables of betas: set it to False; the process is "
            f"{section.process!r}"
        )
    for field in ("sigma_min", "sigma_max"):
        if section[field] is not None and field not in fields:
            raise ValueError(
                f"config.noise_schedule.{field} is {section[field]}, but the process {section.process!r} has none: "
                "leave it None"
            )
    if section.process == "edm":
        if section.time_label == "step":
            raise ValueError(
                "config.noise_schedule.time_label is 'step', but the process 'edm' counts no steps: set it to "
                "'log_sigma' or 'sigma'"
            )
    elif section.time_label == "step":
        process = processes.labelled(process, lambda t: section.noise_steps * t)
    if section.shift != 1:
        process = processes.shifted(process, section.shift)
    ends = {end: section[end] for end in ("t_min", "t_max") if section[end] is not None}
    process = process._replace(**ends)
    noisiest, cleanest = process(process.t_max), process(process.t_min)  # both in the domain, or this says so
    if not process.t_min < process.t_max or not (np.isfinite(cleanest.alpha) and cleanest.sigma > 0):
        raise ValueError(
            "config.noise_schedule needs t_min < t_max, and noise at t_min; got "
            f"{process.t_min} and {process.t_max} for the process {section.process!r}"
        )
    if noisiest.alpha == 0 and section.time_label != "step":
        raise ValueError(
            f"config.noise_schedule.time_label is {section.time_label!r}, which is infinite at pure noise, where the "
            f"process {section.process!r} ends: set time_label to 'step', or t_max below {process.t_max:g}"
        )

    def level(u: jax.Array) -> Level:
        return process.level(process.t_min + (process.t_max - process.t_min) * u)

    def grid(name: str, num_steps: int) -> Level:
        if name == "leading":
            raise ValueError(
                "config.sampler.skip_type is 'leading', which is for tables: the process "
                f"{section.process!r} has {', '.join(sorted(PROCESS_GRIDS))}"
            )
        return choose("sampler.skip_type", name, PROCESS_GRIDS)(process, num_steps)

    return Noise(None, process, level, _at(process), grid)


def _at(process: Process) -> Callable[[jax.Array], Level]:
    with np.errstate(divide="ignore"):
        highest, lowest = (log_snr(process.level(t)) for t in (process.t_min, process.t_max))
    return lambda value: processes.at_log_snr(process, jnp.clip(value, lowest, highest))


def _then(function: Callable[..., Level], relabel: Callable[[Level], Level]) -> Callable[..., Level]:
    return lambda *args: relabel(function(*args))


def _check_labels_fit(config: ConfigDict) -> None:
    name = config.noise_schedule.time_label
    choose("noise_schedule.time_label", name, TIME_LABELS)
    for field in ("fourier_time", "sigma_labels"):
        if config.backbone.get(field, False) and name != "sigma":
            raise ValueError(
                f"config.backbone.{field}: such a network divides by its label, a sigma: set "
                f"config.noise_schedule.time_label to 'sigma'; got {name!r}"
            )
    if config.backbone.get("num_timesteps") is not None:
        raise ValueError("config.backbone.num_timesteps: labels are floats here, between steps too; set it to None")
