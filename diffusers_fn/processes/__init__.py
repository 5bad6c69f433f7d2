"""Continuous noise processes: a time t gives a noise level, a log SNR gives the time.

A process says where its levels lie, x_t = alpha(t) x0 + sigma(t) eps, and by which forward equation they are reached,

    dx = f(t) x dt + g(t) dw,     f = d log(alpha) / dt,     g^2 = d(sigma^2) / dt - 2 f sigma^2

(Kingma et al., "Variational Diffusion Models", 2021, https://arxiv.org/abs/2107.00630); g^2 / sigma^2 is the speed at
which log SNR falls. Numbers of NumPy give NumPy float64; a JAX array gives JAX arrays. A time that can be read must lie
in the process' domain; a traced one cannot be checked.
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
