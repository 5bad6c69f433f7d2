"""A config of your own: DDPM on a two-dimensional point cloud.

    python -m experiments.train --config=docs/skeletons/config.py --workdir=runs/skeleton
    python -m experiments.train --config=docs/skeletons/config.py:wide --workdir=runs/wide

Variants: `small` (the default) and `wide`. What to expect is also stated here: two crescents after a minute on a CPU.

A config is one file with `get_config(arg)`. Every field and its default is in `diffusers_fn/from_config/defaults.py`; a
config changes what it needs, and a wrong name or type raises an error. Inside this repository it is one file in
`configs/`: tests/from_config/test_build.py finds it there and builds every entry of its VARIANTS.
"""

from ml_collections import ConfigDict

from diffusers_fn.from_config.defaults import customise, default_config, pick

VARIANTS = {
    "small": {"backbone": {"name": "mlp", "hidden_size": 64, "depth": 2}},
    "wide": {"backbone": {"name": "mlp", "hidden_size": 256, "depth": 3}},
}


def get_config(arg: str | None = None) -> ConfigDict:
    config = customise(
        default_config(),
        data={"name": "toy2d", "shape": (2,), "num_classes": 0, "variant": "moons"},
        sampler={"clip_denoised": False},
        training={"num_steps": 2_000},
    )
    return customise(config, **pick(VARIANTS, arg, "small"))


if __name__ == "__main__":
    import jax

    import diffusers_fn as dfn

    for name in VARIANTS:
        model = dfn.build(get_config(name))
        params = jax.eval_shape(model.init, jax.random.key(0))
        print(name, sum(leaf.size for leaf in jax.tree.leaves(params)))
