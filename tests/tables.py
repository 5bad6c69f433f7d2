"""Tables of cases that several tests run over: add new parameterizations here."""

from diffusers_fn import parameterizations

PARAMETERIZATIONS = {
    "epsilon": parameterizations.epsilon,
    "x0": parameterizations.x0,
    "v": parameterizations.v,
    "score": parameterizations.score,
    "velocity": parameterizations.velocity,
    "edm": parameterizations.edm(0.7),
}
