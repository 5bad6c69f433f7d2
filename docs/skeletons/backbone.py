"""A backbone of your own: a small convolutional network, conditioned on time and class.

    python docs/skeletons/backbone.py

A backbone is a linen module called as `net.apply(variables, x, t, cond, train=...)`: x [B, ...], t [] or [B] (integer
or float), cond class labels [] or [B] or None. It takes arrays, never a `Level`, and returns an array like x.

Inside this repository the network is a file `diffusers_fn/backbones/NAME.py`, exported by `backbones/__init__.py`,
with one line in the table NETS of `tests/backbones/test_laws.py`, where the laws are checked. For use by name in a
config, add one line to the table BACKBONES of `diffusers_fn/from_config/network.py`. New field names are rows of
docs/vocabulary.md. The laws:

- an untrained network returns zeros (the last layer starts at zero), so that the first prediction is finite;
- parameters, normalisation statistics and the softmax stay in float32, also where `dtype` is bfloat16;
- examples do not influence each other; t and labels may be [] or [B]; traced labels compile nothing;
- `jit`, `vmap`, `grad`, `remat` and a batch sharded over devices give the same numbers;
- wrong shapes and fields raise ValueError before tracing, with the name of the field in the message.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

import diffusers_fn as dfn
from diffusers_fn.backbones import embeddings, ops
from diffusers_fn.from_config import tables


class SmallConvNet(nn.Module):
    """Computes a denoiser's output [B, H, W, C] for noisy images x [B, H, W, C].

    Fields (names as in docs/vocabulary.md):
      channels: base width.
      depth: residual blocks.
      num_classes: None, or the number of class labels; num_classes itself is the null class.
    """

    channels: int = 32
    depth: int = 2
    num_classes: int | None = None

    @nn.compact
    def __call__(self, x: jax.Array, t: jax.Array, cond: jax.Array | None = None, *, train: bool = False) -> jax.Array:
        if x.ndim != 4:
            raise ValueError(f"x must have shape [B, H, W, C]; got {list(x.shape)}")
        # The embedding of time and class, [B, 4 * channels].
        times = embeddings.time_labels(t, x.shape[0], jnp.float32)
        features = embeddings.sinusoidal_features(times, self.channels)
        emb = embeddings.LabelEmbedding(4 * self.channels, self.num_classes, name="embedding")(features, cond)

        # `ops` has layers with flax's signatures that are faster on a CPU. flax's own layers work as well.
        h = ops.Conv(self.channels, (3, 3), name="conv_in")(x)
        for i in range(self.depth):
            r = ops.Conv(self.channels, (3, 3), name=f"conv_{i}")(ops.silu(ops.GroupNorm(8, name=f"norm_{i}")(h)))
            h = h + r + ops.Dense(self.channels, name=f"emb_{i}")(ops.silu(emb))[:, None, None]
        return ops.Conv(x.shape[-1], (3, 3), kernel_init=nn.initializers.zeros, name="conv_out")(h)


if __name__ == "__main__":
    net = SmallConvNet(num_classes=10)
    x, t, labels = jnp.ones((2, 8, 8, 1)), jnp.array([3, 500]), jnp.array([1, 7])
    out, variables = net.init_with_output(jax.random.key(0), x, t, labels)
    assert out.shape == x.shape
    assert not out.any()
    print("parameters:", sum(leaf.size for leaf in jax.tree.leaves(variables)))

    # As a denoiser of your own sampler.
    apply = lambda params, x, t, cond: net.apply({"params": params}, x, t, cond)  # noqa: E731
    denoise = dfn.make_denoiser(apply, variables["params"], dfn.parameterizations.epsilon)
    levels = dfn.grids.trailing(dfn.make_noise_schedule(dfn.linear_betas(1000)), 10)
    samples = dfn.sample(None, dfn.bind(denoise, labels), dfn.solvers.ddim(levels), x).x0
    print("samples:", samples.shape)

    # By name in a config, without editing this repository: its plain fields are the fields of config.backbone.
    mine = tables.Tables(backbones={**tables.BACKBONES, "small_conv_net": tables.BackboneEntry(SmallConvNet)})
    config = dfn.default_config()
    with config.unlocked():
        config.backbone = {"name": "small_conv_net", "channels": 16, "num_classes": 10}
    model = dfn.build(config, mine)
    params = jax.eval_shape(model.init, jax.random.key(0))
    print("from a config:", params["conv_in"]["kernel"].shape)
