"""From config.noise_schedule to noise levels: of training, of the sampling grids, and their time labels."""

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

__all__ = [
    "NOISE_SCHEDULES",
    "PROCESSES",
    "PROCESS_GRIDS",
    "TABLE_GRIDS",
    "TIME_LABELS",
    "Noise",
    "ProcessEntry",
    "make_noise",
    "make_schedule",
]

NOISE_SCHEDULES: Mapping[str, Callable[..., np.ndarray]] = {
    "linear": noise_schedules.linear_betas,
    "scaled_linear": noise_schedules.scaled_linear_betas,
    "quadratic": noise_schedules.quadratic_betas,
    "sqrt": noise_schedules.sqrt_betas,
    "sigmoid": noise_schedules.sigmoid_betas,
    "cosine": lambda num_timesteps, beta_start, beta_end: noise_schedules.cosine_betas(num_timesteps),
}


class ProcessEntry(NamedTuple):
    """A continuous process that config.noise_schedule.process names.

    Attributes:
      make: the process, called with those of `fields` that are not None.
      fields: fields of config.noise_schedule that are its arguments.
      has_times: whether its t runs from 0 to 1, so that it can be drawn and is a time label; t of "edm" is sigma.
    """

    make: Callable[..., Process]
    fields: tuple[str, ...] = ()
    has_times: bool = True


PROCESSES: Mapping[str, ProcessEntry] = {
    "vp": ProcessEntry(processes.vp, ("beta_min", "beta_max")),
    "sub_vp": ProcessEntry(processes.sub_vp, ("beta_min", "beta_max")),
    "ve": ProcessEntry(processes.ve, ("sigma_min", "sigma_max")),
    "cosine": ProcessEntry(processes.cosine),
    "trigonometric": ProcessEntry(processes.trigonometric),
    "flow": ProcessEntry(processes.flow),
    "edm": ProcessEntry(processes.edm, ("sigma_min", "sigma_max"), has_times=False),
}

# The time label of a level, computed from alpha and sigma. None is the timestep, counted from 0; for a process on
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
    """The noise levels of a model, with the time labels of its network.

    Attributes:
      name: config.noise_schedule.process.
      schedule: the table, or None for a continuous process.
      process: the process, or the one through the table; None for a table that ends at pure noise.
      level: u in [0, 1), of any shape -> Level: that of timestep floor(u T), or of t_min + u (t_max - t_min).
      at: log SNR -> Level, clipped to the ends; None for a table that ends at pure noise.
      grid: (name, num_steps) -> Level[num_steps].
      has_times: whether training may draw u: of "edm", whose t is sigma, log sigma is drawn instead.
    """

    name: str
    schedule: NoiseSchedule | None
    process: Process | None
    level: Callable[[jax.Array], Level]
    at: Callable[[jax.Array], Level] | None
    grid: Callable[[str, int], Level]
    has_times: bool = True


def make_schedule(settings: ConfigDict) -> NoiseSchedule:
    """Returns the table of betas that config.noise_schedule describes.

    Raises:
      ValueError: if its name or numbers are not allowed.

    >>> section = {"beta_schedule": "linear", "noise_steps": 1000, "beta_start": 1e-4, "beta_end": 0.02}
    >>> float(make_schedule(ConfigDict({**section, "zero_terminal_snr": False})).betas[-1])
    0.02
    """
    make_betas = choose("noise_schedule.beta_schedule", settings.beta_schedule, NOISE_SCHEDULES)
    betas = make_betas(settings.noise_steps, settings.beta_start, settings.beta_end)
    return noise_schedules.make_noise_schedule(
        noise_schedules.zero_terminal_snr(betas) if settings.zero_terminal_snr else betas
    )


def make_noise(settings: ConfigDict) -> Noise:
    """Returns the noise levels that config.noise_schedule describes.

    Raises:
      ValueError: if a name or a number is not allowed, or two fields contradict each other.

    >>> from diffusers_fn.from_config.defaults import default_config
    >>> noise = make_noise(default_config().noise_schedule)
    >>> noise.grid("trailing", 2).t, float(noise.level(jnp.array(0.9999)).t)
    (array([999., 499.]), 999.0)
    """
    label = choose("noise_schedule.time_label", settings.time_label, TIME_LABELS)
    entry = choose("noise_schedule.process", settings.process, {"table": None, **PROCESSES})
    noise = _on_table(settings) if entry is None else _on_process(settings, entry)
    if label is None:
        return noise
    relabel = lambda level: Level(level.alpha, level.sigma, label(level))  # noqa: E731
    labelled: dict[str, Any] = {
        name: _then(getattr(noise, name), relabel) for name in ("level", "at", "grid") if getattr(noise, name)
    }
    if noise.process is not None:
        labelled["process"] = noise.process._replace(level=_then(noise.process.level, relabel))
    return noise._replace(**labelled)


def _on_table(settings: ConfigDict) -> Noise:
    schedule = make_schedule(settings)
    for field, none in {"sigma_min": None, "sigma_max": None, "t_min": None, "t_max": None, "shift": 1}.items():
        if settings[field] != none:
            raise ValueError(
                f"config.noise_schedule.{field} is {settings[field]}, which a table of betas does not have: leave it "
                f"{none}, or set noise_schedule.process to a continuous one"
            )
    if settings.zero_terminal_snr and TIME_LABELS[settings.time_label] is not None:
        raise ValueError(
            f"config.noise_schedule.time_label is {settings.time_label!r}, which is infinite at pure noise, where "
            "zero_terminal_snr ends: set time_label to 'step'"
        )
    process = processes.tabulated(schedule) if schedule.alphas_cumprod[-1] > 0 else None

    def level(u: jax.Array) -> Level:
        return level_at(schedule, jnp.floor(u * settings.noise_steps).astype(jnp.int32))

    def grid(name: str, num_steps: int) -> Level:
        return choose("sampler.skip_type", name, TABLE_GRIDS)(schedule, num_steps)

    return Noise(settings.process, schedule, process, level, None if process is None else _at(process), grid)


def _on_process(settings: ConfigDict, entry: ProcessEntry) -> Noise:
    process = entry.make(**{field: settings[field] for field in entry.fields if settings[field] is not None})
    if settings.zero_terminal_snr:
        raise ValueError(
            "config.noise_schedule.zero_terminal_snr is for tables of betas: set it to False; the process is "
            f"{settings.process!r}"
        )
    for field in ("sigma_min", "sigma_max"):
        if settings[field] is not None and field not in entry.fields:
            raise ValueError(
                f"config.noise_schedule.{field} is {settings[field]}, but the process {settings.process!r} has none: "
                "leave it None"
            )
    by_step = TIME_LABELS[settings.time_label] is None
    if by_step and not entry.has_times:
        raise ValueError(
            f"config.noise_schedule.time_label is 'step', but the process {settings.process!r} has no timesteps: set "
            "it to 'log_sigma' or 'sigma'"
        )
    if by_step:
        process = processes.labelled(process, lambda t: settings.noise_steps * t)
    if settings.shift != 1:
        process = processes.shifted(process, settings.shift)
    ends = {end: settings[end] for end in ("t_min", "t_max") if settings[end] is not None}
    process = process._replace(**ends)
    noisiest, cleanest = process(process.t_max), process(process.t_min)  # raises if one is outside the domain
    if not process.t_min < process.t_max or not (np.isfinite(cleanest.alpha) and cleanest.sigma > 0):
        raise ValueError(
            "config.noise_schedule needs t_min < t_max, and noise at t_min; got "
            f"{process.t_min} and {process.t_max} for the process {settings.process!r}"
        )
    if noisiest.alpha == 0 and not by_step:
        raise ValueError(
            f"config.noise_schedule.time_label is {settings.time_label!r}, which is infinite at pure noise, where the "
            f"process {settings.process!r} ends: set time_label to 'step', or t_max below {process.t_max:g}"
        )

    def level(u: jax.Array) -> Level:
        return process.level(process.t_min + (process.t_max - process.t_min) * u)

    def grid(name: str, num_steps: int) -> Level:
        if name in TABLE_GRIDS and name not in PROCESS_GRIDS:
            raise ValueError(
                f"config.sampler.skip_type is {name!r}, which is for tables: the process {settings.process!r} has "
                f"{', '.join(sorted(PROCESS_GRIDS))}"
            )
        return choose("sampler.skip_type", name, PROCESS_GRIDS)(process, num_steps)

    return Noise(settings.process, None, process, level, _at(process), grid, entry.has_times)


def _at(process: Process) -> Callable[[jax.Array], Level]:
    with np.errstate(divide="ignore"):
        highest, lowest = (log_snr(process.level(t)) for t in (process.t_min, process.t_max))
    return lambda value: processes.at_log_snr(process, jnp.clip(value, lowest, highest))


def _then(function: Callable[..., Level], relabel: Callable[[Level], Level]) -> Callable[..., Level]:
    return lambda *args: relabel(function(*args))
