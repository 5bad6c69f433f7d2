"""Likelihoods: the variational bound of a discrete diffusion, the density of the probability flow, bits per dimension.

`calc_bpd` computes the bound (Ho et al. 2020, Nichol & Dhariwal 2021); `vlb_loss` and `hybrid_loss` train a learned
variance with it. `log_prob` integrates the probability flow (Song et al. 2021) and returns a density of continuous
data; `uniform_dequantize` and `noise_dequantize` turn it into a bound for discrete data such as pixels.
"""

from diffusers_fn.likelihood.dequantize import bits_per_dim, noise_dequantize, uniform_dequantize
from diffusers_fn.likelihood.discretized import discretized_gaussian_log_likelihood, normal_kl
from diffusers_fn.likelihood.objectives import hybrid_loss, vlb_loss
from diffusers_fn.likelihood.probability_flow import LogProb, gaussian_prior, log_prob, standard_prior
from diffusers_fn.likelihood.traces import Trace, exact_trace, hutchinson
from diffusers_fn.likelihood.vlb import Bound, VbTerms, calc_bpd, prior_bpd, vb_terms_bpd

__all__ = [
    "Bound",
    "LogProb",
    "Trace",
    "VbTerms",
    "bits_per_dim",
    "calc_bpd",
    "discretized_gaussian_log_likelihood",
    "exact_trace",
    "gaussian_prior",
    "hutchinson",
    "hybrid_loss",
    "log_prob",
    "noise_dequantize",
    "normal_kl",
    "prior_bpd",
    "standard_prior",
    "uniform_dequantize",
    "vb_terms_bpd",
    "vlb_loss",
]


def __dir__() -> list[str]:
    return __all__
