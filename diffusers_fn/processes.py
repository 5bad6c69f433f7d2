"""Continuous noise processes: a time t gives a noise level, a log SNR gives the time.

A process says where its levels lie, x_t = alpha(t) x0 + sigma(t) eps, and by which forward equation they are reached,

    dx = f(t) x dt + g(t) dw,     f = d log(alpha) / dt,     g^2 = d(sigma^2) / dt - 2 f sigma^2

(Kingma et al., "Variational Diffusion Models", 2021, https://arxiv.org/abs/2107.00630); g^2 / sigma^2 is the speed at
which log SNR falls. Numbers of NumPy give NumPy float64; a JAX array gives JAX arrays. A time that can be read must lie
in the process' domain; a traced one cannot be checked.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from diffusers_fn._arrays import concrete, namespace, working_dtype
from diffusers_fn.levels import Array, Level, log_snr
from diffusers_fn.noise_schedules import NoiseSchedule, on_host

TimeFunction = Callable[[Any], Any]


class Process(NamedTuple):
    """A continuous family of noise levels; S, the shape of t, is [] or [N].

    Attributes:
      level: t -> Level of shape S, with the label that the network wants.
      time: log SNR -> t, its inverse.
      rates: t -> (f, g^2) of the forward equation, each S; not finite where alpha = 0.
      t_min, t_max: the ends between which one samples.

    >>> process = vp()
    >>> process(0.5) == process.level(0.5)
    True
    """

    level: Callable[[Any], Level]
    time: TimeFunction
    rates: Callable[[Any], tuple[Array, Array]]
    t_min: float
    t_max: float

    def __call__(self, t: Any) -> Level:
        return self.level(t)


def vp(beta_min: float = 0.1, beta_max: float = 20.0) -> Process:
    """Returns the variance-preserving process of the linear beta(t), t in [0, 1], labelled by t.

        B(t) = beta_min t + (beta_max - beta_min) t^2 / 2,   alpha = exp(-B / 2),   sigma^2 = 1 - exp(-B)
        f = -beta(t) / 2,   g^2 = beta(t)

    Song et al., "Score-Based Generative Modeling through Stochastic Differential Equations", 2021,
    https://arxiv.org/abs/2011.13456, eq. 11 and 29. It is not the DDPM table: for that see `tabulated`. Networks of
    that paper are labelled by 999 t: `labelled(vp(), lambda t: 999 * t)`.

    Raises:
      ValueError: unless 0 < beta_min <= beta_max.

    >>> level = vp()(1.0)
    >>> f"{level.alpha:.6f} {level.sigma:.6f}"
    '0.006572 0.999978'
    """
    _check_ordered(beta_min=beta_min, beta_max=beta_max)
    integral, inverse = _linear_beta(beta_min, beta_max)

    def coefficients(t: Any) -> tuple[Array, Array]:
        b = integral(t)
        xp = namespace(b)
        return xp.exp(-b / 2), xp.sqrt(-xp.expm1(-b))

    def time(log_snr: Any) -> Array:  # 1 / alpha^2 = 1 + 1 / SNR
        return inverse(namespace(log_snr).logaddexp(0.0, -log_snr))

    def rates(t: Any) -> tuple[Array, Array]:
        beta = beta_min + (beta_max - beta_min) * t
        return -beta / 2, beta

    return _process(coefficients, time, rates, ends=(1e-3, 1.0))


def sub_vp(beta_min: float = 0.1, beta_max: float = 20.0) -> Process:
    """Returns the sub-VP process: alpha of `vp` with the smaller sigma = 1 - exp(-B), t in [0, 1], labelled by t.

        f = -beta(t) / 2,   g^2 = beta(t) (1 - exp(-2 B(t)))

    Song et al. 2021, https://arxiv.org/abs/2011.13456, eq. 13 and 29.

    Raises:
      ValueError: unless 0 < beta_min <= beta_max.

    >>> f"{sub_vp()(1.0).sigma:.6f}"
    '0.999957'
    """
    _check_ordered(beta_min=beta_min, beta_max=beta_max)
    integral, inverse = _linear_beta(beta_min, beta_max)

    def coefficients(t: Any) -> tuple[Array, Array]:
        b = integral(t)
        xp = namespace(b)
        return xp.exp(-b / 2), -xp.expm1(-b)

    def time(log_snr: Any) -> Array:  # sigma / alpha = 1 / alpha - alpha = 2 sinh(B / 2)
        xp = namespace(log_snr)
        return inverse(2 * xp.arcsinh(xp.exp(-log_snr / 2) / 2))

    def rates(t: Any) -> tuple[Array, Array]:
        beta = beta_min + (beta_max - beta_min) * t
        b = integral(t)
        return -beta / 2, -beta * namespace(b).expm1(-2 * b)

    return _process(coefficients, time, rates, ends=(1e-3, 1.0))


def ve(sigma_min: float = 0.01, sigma_max: float = 50.0) -> Process:
    """Returns the variance-exploding process: alpha = 1, sigma geometric in t in [0, 1], labelled by t.

        sigma = sigma_min (sigma_max / sigma_min)^t,   f = 0,   g^2 = 2 sigma^2 log(sigma_max / sigma_min)

    Song et al. 2021, https://arxiv.org/abs/2011.13456, eq. 9 and 29 (sigma(0) = sigma_min is part of the data there).
    Networks of that paper are labelled by sigma: `labelled(ve(), lambda t: ve()(t).sigma)`.

    Raises:
      ValueError: unless 0 < sigma_min < sigma_max.

    >>> f"{ve()(1.0).sigma:.6f}"
    '50.000000'
    """
    _check_ordered(strictly=True, sigma_min=sigma_min, sigma_max=sigma_max)
    ratio = sigma_max / sigma_min
    log_ratio = namespace(ratio).log(ratio)
    log_min = namespace(sigma_min).log(sigma_min)

    def coefficients(t: Any) -> tuple[Array, Array]:
        sigma = namespace(t, ratio).exp(log_min + log_ratio * t)
        return _ones(sigma), sigma

    def time(log_snr: Any) -> Array:
        return (-log_snr / 2 - log_min) / log_ratio

    def rates(t: Any) -> tuple[Array, Array]:
        _, sigma = coefficients(t)
        return 0.0 * sigma, 2 * log_ratio * sigma**2

    return _process(coefficients, time, rates, ends=(1e-5, 1.0))


def cosine(s: float = 0.008) -> Process:
    """Returns the cosine process, t in [0, 1], labelled by t.

        alpha = cos(theta(t)) / cos(theta(0)),   theta(t) = (t + s) / (1 + s) * pi / 2,   alpha^2 + sigma^2 = 1
        f = -c tan(theta),   g^2 = 2 c tan(theta),   c = pi / 2 / (1 + s)

    Nichol & Dhariwal, "Improved Denoising Diffusion Probabilistic Models", 2021, https://arxiv.org/abs/2102.09672,
    eq. 17, without the clipping of `cosine_betas`. Pure noise at t = 1; t_max = 0.9946, as for DPM-Solver (Lu et al.
    2022, https://arxiv.org/abs/2206.00927), so that log SNR is finite on a plan.

    Raises:
      ValueError: if s < 0.

    >>> cosine()(1.0).alpha
    np.float64(0.0)
    """
    if (value := concrete(s)) is not None and value < 0:
        raise ValueError(f"s, the offset of the cosine process, must not be negative; got {s}")
    c = np.pi / 2 / (1 + s)
    xp = namespace(s)
    cos_start, sin_start = xp.cos(c * s), xp.sin(c * s)

    def coefficients(t: Any) -> tuple[Array, Array]:
        # cos(theta) = sin(c (1 - t)) is 0 at t = 1; sigma^2 is a product of sines, without cancellation near t = 0.
        xp = namespace(t, c)
        sigma2 = xp.sin(c * t) * xp.sin(c * (t + 2 * s)) / cos_start**2
        return xp.sin(c * (1 - t)) / cos_start, xp.sqrt(sigma2)

    def time(log_snr: Any) -> Array:
        alpha, sigma = _on_circle(log_snr)
        sin_theta = namespace(sigma, s).sqrt(sin_start**2 + (cos_start * sigma) ** 2)
        return namespace(sin_theta).arctan2(sin_theta, cos_start * alpha) / c - s

    def rates(t: Any) -> tuple[Array, Array]:
        xp = namespace(t, c)
        tan = xp.sin(c * (t + s)) / xp.sin(c * (1 - t))
        return -c * tan, 2 * c * tan

    return _process(coefficients, time, rates, ends=(1e-3, 0.9946))


def trigonometric() -> Process:
    """Returns the process alpha = cos(pi t / 2), sigma = sin(pi t / 2), t in [0, 1], labelled by t.

        f = -(pi / 2) tan(pi t / 2),   g^2 = pi tan(pi t / 2)

    The generalised variance-preserving interpolant of SiT (Ma et al. 2024, https://arxiv.org/abs/2401.08740; its code
    counts t from the noise). It is `cosine(0)` up to pure noise, and its log SNR, -2 log tan(pi t / 2), is the schedule
    of simple diffusion (Hoogeboom et al. 2023, https://arxiv.org/abs/2301.11093).

    >>> level = trigonometric()(0.5)
    >>> round(float(level.alpha), 6), round(float(level.sigma), 6)
    (0.707107, 0.707107)
    """
    return cosine(0.0)._replace(t_max=1.0)


def flow() -> Process:
    """Returns the straight line between data and noise: alpha = 1 - t, sigma = t, t in [0, 1], labelled by t.

        f = -1 / (1 - t),   g^2 = 2 t / (1 - t)

    Liu et al., "Flow Straight and Fast", 2023, https://arxiv.org/abs/2209.03003, eq. 1, and Lipman et al., "Flow
    Matching", 2023, https://arxiv.org/abs/2210.02747, eq. 20 (both count t from the noise). Networks that were given
    1000 t: `labelled(flow(), lambda t: 1000 * t)`.

    >>> flow()(0.25)
    Level(alpha=np.float64(0.75), sigma=np.float64(0.25), t=np.float64(0.25))
    """

    def time(log_snr: Any) -> Array:
        return _sigmoid(-log_snr / 2)

    def rates(t: Any) -> tuple[Array, Array]:
        return -1 / (1 - t), 2 * t / (1 - t)

    return _process(lambda t: (1 - t, t), time, rates, ends=(1e-3, 1.0))


def edm(sigma_min: float = 0.002, sigma_max: float = 80.0) -> Process:
    """Returns the process whose time is the noise itself: alpha = 1, sigma = t > 0, labelled by log(sigma) / 4.

        f = 0,   g^2 = 2 t

    Karras et al., "Elucidating the Design Space of Diffusion-Based Generative Models", 2022,
    https://arxiv.org/abs/2206.00364, section 3 and table 1. sigma_min and sigma_max are only the ends of sampling.

    Raises:
      ValueError: unless 0 < sigma_min < sigma_max.

    >>> edm()(1.0)
    Level(alpha=np.float64(1.0), sigma=np.float64(1.0), t=np.float64(0.0))
    """
    _check_ordered(strictly=True, sigma_min=sigma_min, sigma_max=sigma_max)

    def time(log_snr: Any) -> Array:
        return namespace(log_snr).exp(-log_snr / 2)

    return _process(
        lambda t: (_ones(t), t),
        time,
        lambda t: (0.0 * t, 2.0 * t),
        ends=(sigma_min, sigma_max),
        domain=(float(np.finfo(np.float32).tiny), np.inf),
        label=lambda t: namespace(t).log(t) / 4,
    )


class Interpolation(NamedTuple):
    """What is linear in t between the timesteps of a table: y, a monotone function of log SNR.

    Attributes:
      of: log SNR -> y.
      log_snr: y -> log SNR.
      slope: y -> d(log SNR) / dy.

    >>> round(float(linear_sigma.of(linear_sigma.log_snr(3.0))), 12)
    3.0
    """

    of: TimeFunction
    log_snr: TimeFunction
    slope: TimeFunction


linear_log_snr = Interpolation(lambda log_snr: log_snr, lambda y: y, lambda y: 1.0)
linear_sigma = Interpolation(  # y = sigma / alpha
    lambda log_snr: namespace(log_snr).exp(-log_snr / 2), lambda y: -2 * namespace(y).log(y), lambda y: -2 / y
)
linear_log_alpha = Interpolation(  # y = log(alpha)
    lambda log_snr: -namespace(log_snr).logaddexp(0.0, -log_snr) / 2,
    lambda y: 2 * y - namespace(y).log(-namespace(y).expm1(2 * y)),
    lambda y: -2 / namespace(y).expm1(2 * y),
)


def tabulated(schedule: NoiseSchedule, interpolation: Interpolation = linear_log_snr) -> Process:
    """Returns the continuous process through a discrete table, t in [0, T-1], labelled by t.

    At an integer t the level is that of the table; in between log SNR is linear in t, alpha^2 + sigma^2 = 1. Other
    people's samplers also interpolate sigma / alpha (`linear_sigma`) or log(alpha) (`linear_log_alpha`). With slope =
    d(log SNR) / dt,

        f = slope sigma^2 / 2,   g^2 = -slope sigma^2

    Args:
      schedule: the table.
      interpolation: what is linear in t.

    Raises:
      ValueError: if the schedule has a single timestep, ends on pure noise (log SNR -inf) or is traced.

    >>> from diffusers_fn.noise_schedules import level_at, linear_betas, make_noise_schedule
    >>> schedule = make_noise_schedule(linear_betas(1000))
    >>> process = tabulated(schedule)
    >>> bool(np.isclose(process(499.0).sigma, level_at(schedule, 499).sigma, rtol=1e-14))
    True
    >>> process.time(log_snr(process(12.5))).round(6)
    np.float64(12.5)
    """
    alphas_cumprod = on_host(schedule).alphas_cumprod
    if alphas_cumprod[-1] == 0:
        raise ValueError("the schedule ends on pure noise, where log SNR is -inf: use linspace or trailing instead")
    if alphas_cumprod.size < 2:
        raise ValueError("a process through a table needs at least 2 timesteps; got 1")
    log_snrs = np.log(alphas_cumprod) - np.log1p(-alphas_cumprod)
    steps, table = np.arange(log_snrs.size, dtype=np.float64), interpolation.of(log_snrs)
    rising = np.argsort(table)

    def interpolate(x: Any, knots: np.ndarray, values: np.ndarray) -> Array:
        xp = namespace(x)
        return xp.interp(x, xp.asarray(knots, x.dtype), xp.asarray(values, x.dtype))

    def coefficients(t: Any) -> tuple[Array, Array]:
        return _on_circle(interpolation.log_snr(interpolate(t, steps, table)))

    def time(log_snr: Any) -> Array:
        _check_within_table(log_snr, log_snrs)
        return interpolate(interpolation.of(log_snr), table[rising], steps[rising])

    def rates(t: Any) -> tuple[Array, Array]:
        xp = namespace(t)
        interval = xp.clip(xp.floor(t).astype(int), 0, table.size - 2)
        slope = xp.asarray(np.diff(table), t.dtype)[interval] * interpolation.slope(interpolate(t, steps, table))
        _, sigma = coefficients(t)
        return slope * sigma**2 / 2, -slope * sigma**2

    last = steps[-1].item()
    return _process(coefficients, time, rates, ends=(0.0, last), domain=(0.0, last))


def shifted(process: Process, shift: float) -> Process:
    """Returns the process with log SNR lowered by 2 log(shift): shift > 1 stays longer in the noise.

    Its level at t is the old level at t', log SNR(t') = log SNR(t) - 2 log(shift), with the label of t'. On `flow` that
    is, with the label,

        t' = shift t / (1 + (shift - 1) t)

    Esser et al., "Scaling Rectified Flow Transformers", 2024, https://arxiv.org/abs/2403.03206, eq. 23. The shift of
    simple diffusion for images of size d, log SNR + 2 log(64 / d), is the same one: `shifted(process, d / 64)`
    (Hoogeboom et al. 2023, https://arxiv.org/abs/2301.11093). t_min and t_max move inwards where t' would
    leave the old ends.

    Raises:
      ValueError: unless shift > 0.

    >>> shifted(flow(), 3.0)(0.5)
    Level(alpha=np.float64(0.25), sigma=np.float64(0.75), t=np.float64(0.75))
    """
    if (value := concrete(shift)) is not None and not value > 0:
        raise ValueError(f"shift must be positive; got {shift}")
    offset = 2 * namespace(shift).log(shift)

    def moved(t: Any) -> Array:
        return process.time(log_snr(process.level(t)) - offset)

    def level(t: Any) -> Level:
        return process.level(moved(t))

    def time(log_snr: Any) -> Array:
        return process.time(log_snr + offset)

    def rates(t: Any) -> tuple[Array, Array]:  # dt' / dt is the ratio of the speeds of log SNR, -g^2 / sigma^2
        t_moved = moved(t)
        f, g2 = process.rates(t_moved)
        speed = g2 / process.level(t_moved).sigma ** 2
        with np.errstate(invalid="ignore"):  # not a number where both are infinite, at alpha = 0
            speedup = process.rates(t)[1] / process.level(t).sigma ** 2 / speed
        return f * speedup, g2 * speedup

    xp = namespace(offset)
    highest, lowest = (log_snr(process.level(t)) for t in (process.t_min, process.t_max))
    t_min = xp.where(offset < 0, process.time(highest + xp.minimum(offset, 0.0)), process.t_min)[()]
    t_max = xp.where(offset > 0, process.time(lowest + xp.maximum(offset, 0.0)), process.t_max)[()]
    return Process(level, time, rates, t_min, t_max)


def labelled(process: Process, label: TimeFunction) -> Process:
    """Returns the process with label(t) as the label of its levels, for networks that want another one than t.

    On a shifted process t is the time before the shift: label first, then shift.

    Args:
      process: any.
      label: t -> label, each S; written with operators or `jax.numpy`, it also traces.

    >>> labelled(flow(), lambda t: 1000 * t)(0.25).t
    np.float64(250.0)
    """

    def level(t: Any) -> Level:
        old = process.level(t)
        return Level(old.alpha, old.sigma, label(_floating(t)))

    return process._replace(level=level)


def at_log_snr(process: Process, log_snr: Any) -> Level:
    """Returns the level of a process at the given log SNR, [] or [N].

    >>> at_log_snr(flow(), 0.0).sigma
    np.float64(0.5)
    """
    return process.level(process.time(log_snr))


def between(frm: Level, to: Level, fraction: Any, process: Process | None = None) -> Level:
    """Returns the level at log SNR (1 - fraction) log_snr(frm) + fraction log_snr(to), S = [] or [N].

    With a process it is the process' own level, label included. Without one the two ends alone give it: on the circle
    alpha^2 + sigma^2 = 1 if both lie on it, else on the chord between them in the plane of alpha and sigma (exact for
    alpha = 1 and for flow). The label is then linear in log SNR on the circle and where alpha is constant, and linear
    in sigma otherwise.

    Args:
      frm: the noisier level, S.
      to: the cleaner level, S.
      fraction: a number in [0, 1], 0 at `frm`.
      process: the process that both levels lie on, if known.

    Raises:
      ValueError: if a readable fraction is outside [0, 1], or if log SNR is not finite at a readable end (alpha = 0 or
        sigma = 0). Where it cannot be read the result is NaN.

    >>> between(Level(1.0, 4.0, 0.0), Level(1.0, 1.0, 1.0), 0.5)
    Level(alpha=np.float64(1.0), sigma=np.float64(2.0), t=np.float64(0.5))
    """
    _check_between(frm, to, fraction)
    xp = namespace(frm, to, fraction)
    middle = (1 - fraction) * log_snr(frm) + fraction * log_snr(to)
    if process is not None:
        return at_log_snr(process, middle)

    constant = frm.alpha == to.alpha
    circle = _is_on_circle(frm) & _is_on_circle(to) & ~constant
    # Where the ray alpha = ratio sigma meets the chord.
    ratio = xp.exp(middle / 2)
    cross = frm.sigma * to.alpha - frm.alpha * to.sigma
    chord_sigma = cross / ((to.alpha - frm.alpha) - ratio * (to.sigma - frm.sigma))
    chord_alpha = xp.where(constant, frm.alpha, ratio * chord_sigma)
    circle_alpha, circle_sigma = _on_circle(middle)
    alpha = xp.where(circle, circle_alpha, chord_alpha)
    sigma = xp.where(circle, circle_sigma, chord_sigma)

    width = xp.where(frm.sigma == to.sigma, 1.0, to.sigma - frm.sigma)
    weight = xp.where(circle | constant, fraction, (sigma - frm.sigma) / width)
    return Level(alpha[()], sigma[()], ((1 - weight) * frm.t + weight * to.t)[()])


def _process(
    coefficients: Callable[[Any], tuple[Array, Array]],
    time: TimeFunction,
    rates: Callable[[Any], tuple[Array, Array]],
    ends: tuple[Any, Any],
    domain: tuple[float, float] = (0.0, 1.0),
    label: TimeFunction = lambda t: t,
) -> Process:
    """A process whose functions are given times of floating type that lie in the domain."""

    def checked_level(t: Any) -> Level:
        t = _check_time(t, domain)
        alpha, sigma = coefficients(t)
        return Level(alpha, sigma, label(t))

    def checked_rates(t: Any) -> tuple[Array, Array]:
        with np.errstate(divide="ignore"):  # infinite where alpha = 0
            return rates(_check_time(t, domain))

    def time_at(log_snr: Any) -> Array:
        return time(_floating(log_snr))

    return Process(checked_level, time_at, checked_rates, *ends)


def _linear_beta(beta_min: Any, beta_max: Any) -> tuple[TimeFunction, TimeFunction]:
    """B(t), the integral of beta from 0 to t, and its inverse."""
    slope = beta_max - beta_min

    def integral(t: Any) -> Array:
        return t * (beta_min + slope * t / 2)

    def inverse(b: Any) -> Array:
        root = beta_min**2 + 2 * slope * b
        return 2 * b / (beta_min + namespace(root).sqrt(root))

    return integral, inverse


def _sigmoid(x: Any) -> Array:
    xp = namespace(x)
    return xp.exp(-xp.logaddexp(0.0, -x))  # small values keep their digits, large x does not overflow


def _on_circle(log_snr: Any) -> tuple[Array, Array]:
    """alpha and sigma at a log SNR where alpha^2 + sigma^2 = 1."""
    xp = namespace(log_snr)
    return xp.sqrt(_sigmoid(log_snr)), xp.sqrt(_sigmoid(-log_snr))


def _is_on_circle(level: Level) -> Array:
    return abs(level.alpha**2 + level.sigma**2 - 1) < 1e-6


def _ones(like: Any) -> Array:
    return namespace(like).ones_like(like)[()]


def _floating(t: Any) -> Array:
    if isinstance(t, jax.Array):
        return t.astype(working_dtype(t))
    return np.asarray(t, np.float64)[()]


def _check_time(t: Any, domain: tuple[float, float]) -> Array:
    t, (lowest, highest) = _floating(t), domain
    values = concrete(t)
    if values is not None and values.size:
        slack = 1e-6 * (highest - lowest) if np.isfinite(highest) else 0.0  # t may have been rounded to float32
        wrong = values[~((values >= lowest - slack) & (values <= highest + slack))]
        if wrong.size:
            allowed = f"in [{lowest:g}, {highest:g}]" if np.isfinite(highest) else "above 0"
            raise ValueError(f"t must lie {allowed} for this process; got {wrong.flat[0]}")
    return t


def _check_within_table(log_snr: Any, table: np.ndarray) -> None:
    values = concrete(log_snr)
    if values is None or not values.size:
        return
    slack = (1e-9 if values.dtype == np.float64 else 1e-6) * (table[0] - table[-1])
    if not (values.min() >= table[-1] - slack and values.max() <= table[0] + slack):
        ends = np.exp(-0.5 * table[[0, -1]])
        raise ValueError(
            f"sigma / alpha must lie within the schedule's own range, {ends[0]:.6g} to {ends[1]:.6g}; "
            f"got {np.exp(-0.5 * values.max()):.6g} to {np.exp(-0.5 * values.min()):.6g}"
        )


def _check_ordered(strictly: bool = False, **bounds: Any) -> None:
    """Raises ValueError unless 0 < the first bound <= (or <) the second, where they can be read."""
    (low_name, low), (high_name, high) = ((name, concrete(value)) for name, value in bounds.items())
    relation = "<" if strictly else "<="
    if low is not None and high is not None and not (low > 0 and (low < high or (low == high and not strictly))):
        raise ValueError(f"a process needs 0 < {low_name} {relation} {high_name}; got {low} and {high}")


def _check_between(frm: Level, to: Level, fraction: Any) -> None:
    value = concrete(fraction)
    if value is not None and not np.all((value >= 0) & (value <= 1)):
        raise ValueError(f"fraction must lie in [0, 1]; got {fraction}")
    for name, level in (("frm", frm), ("to", to)):
        for field in ("alpha", "sigma"):
            value = concrete(getattr(level, field))
            if value is not None and np.any(value == 0):
                raise ValueError(
                    f"log SNR is infinite where {name}.{field} = 0, and no level lies between: "
                    "start from a level with alpha > 0 and stop at one with sigma > 0"
                )
