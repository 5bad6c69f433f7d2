"""Networks that are not called with (x, t, class labels), and their inputs."""

import jax
import jax.numpy as jnp
import numpy as np

from diffusers_fn.backbones import (
    Classifier,
    ClipTextEncoder,
    ControlNet,
    Flux,
    MMDiT,
    PixArt,
    T5Encoder,
    UNet2DCondition,
)

RNG = np.random.default_rng(0)


def normal(*shape):
    return jnp.asarray(RNG.standard_normal(shape), jnp.float32)


CALLS = {
    "unet2d_condition": (
        UNet2DCondition(
            channels=8,
            channel_multipliers=(1, 1),
            num_res_blocks=1,
            transformer_depths=(1, 0),
            num_heads=2,
            context_dim=6,
            norm_groups=4,
            num_classes=5,
            text_time_dims=(4, 13),
            time_cond_dim=3,
        ),
        (
            normal(8, 4, 4, 4),
            jnp.arange(8) * 100,
            {
                "context": normal(8, 3, 6),
                "class_labels": jnp.arange(8) % 5,
                "text_embeds": normal(8, 5),
                "time_ids": 100 * normal(8, 2),
                "timestep_cond": normal(8, 3),
            },
        ),
    ),
    "classifier": (
        Classifier(
            num_classes=5,
            image_size=4,
            channels=8,
            channel_multipliers=(1, 1),
            num_res_blocks=1,
            attention_resolutions=(2,),
            head_dim=4,
            norm_groups=4,
        ),
        (normal(8, 4, 4, 3), jnp.arange(8) * 100),
    ),
    "clip_text": (
        ClipTextEncoder(
            vocab_size=20, max_length=6, hidden_size=8, depth=2, num_heads=2, mlp_ratio=2.0, projection_dim=5
        ),
        (jnp.asarray(RNG.integers(0, 20, [8, 6])),),
    ),
    "t5": (
        T5Encoder(vocab_size=20, hidden_size=8, depth=2, num_heads=2, mlp_ratio=2.0, num_buckets=8, max_distance=6),
        (jnp.asarray(RNG.integers(0, 20, [8, 7])),),
    ),
    "mmdit": (
        MMDiT(
            image_size=8,
            in_channels=4,
            hidden_size=16,
            depth=3,
            num_heads=2,
            context_dim=6,
            text_embeds_dim=5,
            num_positions=6,
            qk_norm="rms",
            dual_attention_blocks=(1,),
        ),
        (normal(8, 4, 8, 4), jnp.arange(8) * 100.0, {"context": normal(8, 3, 6), "text_embeds": normal(8, 5)}),
    ),
    "flux": (
        Flux(
            in_channels=4,
            hidden_size=16,
            depth=2,
            single_depth=1,
            num_heads=2,
            context_dim=6,
            text_embeds_dim=5,
            guidance_embedding=True,
            rope_dims=(2, 2, 4),
        ),
        (
            normal(8, 4, 8, 4),
            jnp.arange(8) / 8,
            {"context": normal(8, 3, 6), "text_embeds": normal(8, 5), "guidance": jnp.arange(8.0) / 4},
        ),
    ),
    "pixart": (
        PixArt(image_size=8, hidden_size=24, depth=2, num_heads=2, context_dim=6, size_conditions=True),
        (
            normal(8, 4, 8, 4),
            jnp.arange(8) * 100,
            {
                "context": normal(8, 3, 6),
                "context_mask": jnp.ones([8, 3], bool).at[:, 2].set(False),
                "resolution": 100 * normal(8, 2),
                "aspect_ratio": normal(8, 1),
            },
        ),
    ),
    "controlnet": (
        ControlNet(
            channels=8,
            channel_multipliers=(1, 1),
            num_res_blocks=1,
            transformer_depths=(1, 0),
            num_heads=2,
            context_dim=6,
            norm_groups=4,
            condition_widths=(4, 6),
        ),
        (normal(8, 4, 4, 4), jnp.arange(8) * 100, {"context": normal(8, 3, 6), "image": normal(8, 8, 8, 3)}),
    ),
}


class Case:
    """A network, its inputs, random parameters, and its output as one array [B, ...]."""

    def __init__(self, net, args):
        self.net, self.args = net, args
        self.shapes = jax.eval_shape(net.init, jax.random.key(0), *args)["params"]
        rng = np.random.default_rng(1)

        def draw(path, leaf):
            noise = rng.standard_normal(leaf.shape)
            if path[-1].key == "kernel":
                noise = noise / np.sqrt(leaf.size / leaf.shape[-1])
            elif path[-1].key in ("bias", "scale"):
                noise = 0.1 * noise + (path[-1].key == "scale")
            return jnp.asarray(noise, jnp.float32)

        self.params = jax.tree_util.tree_map_with_path(draw, self.shapes)

    def run(self, params, args=None, **fields):
        """Returns all outputs, flattened and concatenated per example."""
        out = self.net.clone(**fields).apply({"params": params}, *(self.args if args is None else args))
        leaves = [leaf.reshape(len(leaf), -1) for leaf in jax.tree.leaves(out)]
        return jnp.concatenate(leaves, axis=1).astype(jnp.float32)

    def gradients(self, params, **fields):
        """Returns the gradients of a random projection of the output, and the output."""

        def projected(params):
            out = self.run(params, **fields)
            weights = np.random.default_rng(2).standard_normal(out.shape).astype(np.float32)
            return jnp.sum(jnp.asarray(weights) * out), out

        return jax.grad(projected, has_aux=True)(params)
