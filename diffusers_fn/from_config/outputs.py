"""From config.parameterization and config.variance to the meaning of the network's output."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from diffusers_fn import parameterizations, variances
from diffusers_fn.from_config.choices import choose
from diffusers_fn.parameterizations import Parameterization

__all__ = ["PARAMETERIZATIONS", "VARIANCES", "make_parameterization"]

# (sigma_data, score_scaling) -> parameterization.
PARAMETERIZATIONS: Mapping[str, Callable[[float, float], Parameterization]] = {
    "epsilon": lambda sigma_data, score_scaling: parameterizations.epsilon,
    "x0": lambda sigma_data, score_scaling: parameterizations.x0,
    "v": lambda sigma_data, score_scaling: parameterizations.v,
    "score": lambda sigma_data, score_scaling: parameterizations.scaled_score(score_scaling),
    "velocity": lambda sigma_data, score_scaling: parameterizations.velocity,
    "edm": lambda sigma_data, score_scaling: parameterizations.edm(sigma_data),
}

VARIANCES: Mapping[str, variances.Variance] = {
    "fixed_small": variances.fixed_small,
    "fixed_large": variances.fixed_large,
    "learned": variances.learned,
    "learned_range": variances.learned_range,
}


def make_parameterization(
    name: str, *, sigma_data: float = 0.5, score_scaling: float = 1.0, scale_input: bool = False
) -> Parameterization:
    """Returns the parameterization that config.parameterization names.

    Args:
      name: of the parameterization.
      sigma_data: standard deviation of the data.
      score_scaling: factor of the output of "score".
      scale_input: whether the network's input is x over its standard deviation ("edm" scales its input anyway).

    Raises:
      ValueError: if no parameterization has that name.

    >>> make_parameterization("v").name
    'v'
    """
    made = choose("parameterization", name, PARAMETERIZATIONS)(sigma_data, score_scaling)
    if scale_input and made.input_scale is None:
        made = made._replace(input_scale=parameterizations.unit_input(sigma_data))
    return made
