"""Continuous noise processes: functions from a time t to a noise level, and from a log SNR to the time.

A process defines the levels, x_t = alpha(t) x0 + sigma(t) eps, and the forward equation that leads to them,

    dx = f(t) x dt + g(t) dw,     f = d log(alpha) / dt,     g^2 = d(sigma^2) / dt - 2 f sigma^2

(Kingma et al., "Variational Diffusion Models", 2021, https://arxiv.org/abs/2107.00630). The derivative of log SNR is
-g^2 / sigma^2. NumPy times give NumPy float64 values, JAX times give JAX arrays. A time must lie in the domain of the
process, which is checked unless it is traced.
"""

from diffusers_fn.processes.base import Process, at_log_snr
from diffusers_fn.processes.derived import exchanged, labelled, shifted
from diffusers_fn.processes.families import cosine, edm, flow, sub_vp, trigonometric, ve, vp
from diffusers_fn.processes.in_between import between
from diffusers_fn.processes.tables import Interpolation, linear_log_alpha, linear_log_snr, linear_sigma, tabulated

__all__ = [
    "Interpolation",
    "Process",
    "at_log_snr",
    "between",
    "cosine",
    "edm",
    "exchanged",
    "flow",
    "labelled",
    "linear_log_alpha",
    "linear_log_snr",
    "linear_sigma",
    "shifted",
    "sub_vp",
    "tabulated",
    "trigonometric",
    "ve",
    "vp",
]


def __dir__() -> list[str]:
    return __all__
