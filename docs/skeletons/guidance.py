"""A guidance of your own: classifier-free guidance whose update is limited to a norm per example.

    python docs/skeletons/guidance.py

Write a rule first: how a conditional and an unconditional prediction are combined. `classifier_free(rule=...)`
evaluates the network for it, in one batch or two, with scales that are numbers, traced, per example or functions of
the level.

Inside this repository the rule is a file `diffusers_fn/guidance/NAME.py`, exported by `guidance/__init__.py`, with one
line in the table GUIDANCES of `tests/guidance/test_common.py`, where the laws are checked (the neutral scale changes no
bit, another scale compiles nothing, JAX's transforms pass):

    "clipped": (lambda s, _: guidance.classifier_free(s, NULL, rule=guidance.clipped(1.0)), 1.0),

For use by name in a config, add one line to the table GUIDANCES of `diffusers_fn/from_config/guiding.py`.
"""

import jax
import jax.numpy as jnp
import numpy as np

import diffusers_fn as dfn
from diffusers_fn import guidance
from diffusers_fn.from_config import tables


def clipped(max_norm: float) -> guidance.Rule:
    """Returns the rule x0' = x0_cond + d min(1, max_norm / |d|) with d = (scale - 1) (x0_cond - x0_uncond)."""

    def rule(better: dfn.Prediction, worse: dfn.Prediction, scale: jax.Array, level: dfn.Level) -> dfn.Prediction:
        d = (scale - 1) * (better.x0 - worse.x0)  # 0 at scale 1: `better` is returned bit for bit
        norm = jnp.sqrt(guidance.inner_product(d, d))  # per example, [B, 1, ...]
        d = d * jnp.minimum(1.0, max_norm / jnp.maximum(norm, 1e-12))
        # Moves the prediction along the line x = alpha x0 + sigma eps, so that eps follows x0.
        return guidance.shift_output(better, d, level, dfn.parameterizations.x0)

    return rule


if __name__ == "__main__":

    def denoise(x, level, cond=None):  # a denoiser that predicts cond; in practice dfn.make_denoiser(...)
        x0 = jnp.broadcast_to(cond[:, None].astype(x.dtype), x.shape)
        return dfn.Prediction(x0, (x - level.alpha * x0) / level.sigma)

    x, level, labels = jnp.ones((2, 3)), dfn.Level(0.8, 0.6, 10.0), jnp.array([2, 3])
    guided = guidance.classifier_free(5.0, null_cond=0, rule=clipped(1.0))(denoise)
    moved = guided(x, level, labels).x0 - denoise(x, level, labels).x0
    np.testing.assert_allclose(np.linalg.norm(moved, axis=1), 1.0, rtol=1e-6)
    print("the update has norm 1")

    neutral = guidance.classifier_free(jnp.array(1.0), null_cond=0, rule=clipped(1.0))(denoise)
    np.testing.assert_array_equal(neutral(x, level, labels).x0, denoise(x, level, labels).x0)
    print("scale 1 is the conditional prediction")

    # By name in a config, without editing this repository.
    def make(settings, inputs, scale):
        return guidance.classifier_free(scale, inputs.null_cond, batched=settings.cfg_batched, rule=clipped(1.0))

    mine = {"clipped": tables.GuidanceEntry(make)}
    config = dfn.customise(
        dfn.default_config(),
        backbone={"name": "mlp", "num_classes": 10},
        sampler={"guidance": "clipped", "cfg_scale": 2.0},
    )
    dfn.build(config, tables.Tables(guidances={**tables.GUIDANCES, **mine}))
    print("built from a config")
