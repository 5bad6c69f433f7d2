"""Few-step models from configs: objectives, samplers and the network of two times fit together."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_models import some_params

import diffusers_fn as dfn
from configs.few_step import get_config
from diffusers_fn import few_step, losses
from diffusers_fn.backbones import MLP, TwoTimeConditioned, UNet
from diffusers_fn.from_config.defaults import customise
from diffusers_fn.from_config.noise import make_noise

VARIANTS = ("mean_flow", "consistency")
BATCH = {
    "image": jax.random.uniform(jax.random.key(1), (8, 2), minval=-1),
    "label": jnp.array([0, 1, 2, 0, 1, 2, 0, 1]),
}


def small_config(variant, **sections):
    """A variant on points in the plane that compiles in no time."""
    config = customise(
        get_config(variant),
        data={"shape": (2,), "num_classes": 3},
        backbone={"hidden_size": 8, "depth": 1, "embedding_dim": 8, "num_classes": 3},
    )
    return customise(config, **sections)


@pytest.fixture(scope="module", params=VARIANTS)
def model(request):
    diffusion = dfn.build(small_config(request.param))
    return diffusion, some_params(diffusion.init)


def test_an_examples_loss_is_its_own(model):
    """With one key per example, the loss does not depend on the rest of the batch."""
    diffusion, params = model
    keys = jax.random.split(jax.random.key(2), 8)
    loss, metrics = jax.jit(diffusion.loss)(params, keys, BATCH)
    assert loss.shape == metrics["mse"].shape == (8,)
    assert np.all(np.isfinite(loss))
    order = np.array([3, 1, 0, 2, 7, 6, 5, 4])
    shuffled, _ = jax.jit(diffusion.loss)(params, keys[order], jax.tree.map(lambda a: a[order], BATCH))
    np.testing.assert_allclose(shuffled, loss[order], rtol=2e-5)  # float32, in another order of lanes


@pytest.mark.long
@pytest.mark.parametrize("steps", [1, 2, 4])
def test_as_many_evaluations_as_steps(model, steps):
    """The samples are those of the solver written out, one evaluation a step."""
    diffusion, params = model
    cond = jnp.array([0, 1, 2, 3])  # the last without a class
    key = jax.random.key(4)
    made = diffusion.sample(params, key, 4, cond=cond, num_inference_steps=steps, emit=lambda step: step)
    assert made.trace.x.shape == (steps, 4, 2)
    x = made.trace.x[0]
    np.testing.assert_allclose(made.trace.level.sigma[0], 1.0, rtol=1e-6)  # from pure noise
    label = made.trace.level.t
    if isinstance(label, tuple):  # x' = x - (t - t') u, down to 0
        t, to = (np.asarray(each) for each in label)
        np.testing.assert_allclose(t, np.linspace(1, 0, steps, endpoint=False), rtol=1e-6)
        np.testing.assert_allclose(to, np.append(t[1:], 0.0), atol=1e-7)
        for here, there in zip(t, to):
            x = x - (here - there) * diffusion.apply(params, x, (here, there), cond)
        np.testing.assert_allclose(made.x0, x, rtol=1e-4, atol=1e-5)
    else:  # the last level's cos(a) x - sin(a) F
        x, level = made.trace.x[-1], jax.tree.map(lambda a: a[-1], made.trace.level)
        F = diffusion.apply(params, x, level.t, cond)
        np.testing.assert_allclose(made.x0, level.alpha * x - level.sigma * F, rtol=1e-4, atol=1e-5)


KEYS = 8


def own_draws(index):
    """The key of example `index`, its time key, and its eps and x0, each [1, 2]: the loss splits the key in four."""
    key = jax.random.split(jax.random.key(2), KEYS)[index : index + 1]
    time_key, noise_key, _, _ = jax.vmap(lambda k: jax.random.split(k, 4), out_axes=1)(key)
    x0 = BATCH["image"][index : index + 1]
    eps = jax.vmap(lambda k: jax.random.normal(k, (2,), x0.dtype))(noise_key)
    return key, time_key, eps, x0


def loss_of(diffusion, params, index):
    one = jax.tree.map(lambda a: a[index : index + 1], BATCH)
    return diffusion.loss(params, own_draws(index)[0], one)[0][0]


@pytest.mark.long
def test_guidance_is_learned_from_the_network_without_a_label():
    """With r = t the target is (1 - scale) u(x, t, t, no label) + scale (eps - x0); without guidance eps - x0."""
    scale, section = 2.5, {"two_times_share": 0.0, "label_dropout": 1e-9}
    guided = dfn.build(small_config("mean_flow", loss={**section, "guidance_scale": scale}))
    plain = dfn.build(small_config("mean_flow", loss=section))
    params = some_params(guided.init)
    for index in range(2):
        _, time_key, eps, x0 = own_draws(index)
        t, _ = few_step.draw_two_times(time_key, 1, losses.logit_normal_time(-0.4, 1.4), share=0.0)
        x = dfn.add_noise(x0, eps, dfn.Level(1 - t, t, t))
        label = BATCH["label"][index : index + 1]
        u, without = (guided.apply(params, x, t, c) for c in (label, jnp.full_like(label, 3)))
        velocity = eps - x0
        for model, wanted in ((plain, velocity), (guided, (1 - scale) * without + scale * velocity)):
            np.testing.assert_allclose(loss_of(model, params, index), jnp.sum((u - wanted) ** 2), rtol=1e-4)


def test_the_consistency_loss_is_the_change_of_the_end():
    """Its value is the mean square of cos(a) df/da along the data's own path, here by central differences."""
    config = small_config("consistency", loss={"label_dropout": 0.0})
    diffusion, noise = dfn.build(config), make_noise(config.noise_schedule)
    params, index, h = some_params(diffusion.init), 1, 3e-3
    _, time_key, eps, x0 = own_draws(index)
    t = losses.log_normal_level(noise.at, 0.4, 1.4)(time_key, 1).t  # the time label is t itself
    angle = jnp.pi / 2 * t[:, None]

    def end(a):
        x = jnp.cos(a) * x0 + jnp.sin(a) * eps
        F = diffusion.apply(params, x, 2 / jnp.pi * a[:, 0], BATCH["label"][index : index + 1])
        return jnp.cos(a) * x - jnp.sin(a) * F

    g = jnp.cos(angle) * (end(angle + h) - end(angle - h)) / (2 * h)
    # h^2 times a third derivative, and float32 over h: some 1e-4 each.
    np.testing.assert_allclose(loss_of(diffusion, params, index), jnp.mean(g**2), rtol=2e-3)


@pytest.mark.parametrize("variant", ["mean_flow", "consistency"])
def test_noise_that_a_batch_brings_is_taken(variant):
    diffusion = dfn.build(small_config(variant, loss={"label_dropout": 0.0}))
    params = some_params(diffusion.init)
    key, _, eps, _ = own_draws(1)
    one = jax.tree.map(lambda a: a[1:2], BATCH)
    loss = lambda noise: float(diffusion.loss(params, key, {**one, "noise": noise})[0][0])  # noqa: E731
    drawn = float(loss_of(diffusion, params, 1))
    np.testing.assert_allclose(loss(eps), drawn, rtol=1e-6)
    assert abs(loss(-eps) - drawn) > 1e-3 * drawn


@pytest.mark.parametrize(
    ("variant", "sections", "message"),
    [
        ("mean_flow", {"sampler": {"name": "ddim"}}, "'jump' and loss.objective 'mean_flow' go together"),
        ("consistency", {"sampler": {"name": "jump"}}, "'jump' and loss.objective 'mean_flow' go together"),
        ("mean_flow", {"noise_schedule": {"process": "trigonometric"}}, "set noise_schedule.process to 'flow'"),
        ("mean_flow", {"parameterization": "v"}, "and parameterization to 'velocity'; got 'flow', 'step' and 'v'"),
        ("consistency", {"noise_schedule": {"process": "flow"}}, "set noise_schedule.process to 'trigonometric'"),
        ("consistency", {"parameterization": "x0"}, "parameterization to 'v'"),
        ("mean_flow", {"loss": {"guidance_scale": 2.0, "label_dropout": 0.0}}, "prediction without a label"),
        ("mean_flow", {"noise_schedule": {"shift": 3.0}}, "set noise_schedule.shift to 1"),
        (
            "mean_flow",
            {"noise_schedule": {"t_max": 0.9}},
            "t_min to None and noise_schedule.t_max to None; got 1.0, None and 0.9",
        ),
        ("mean_flow", {"loss": {"weight": "min_snr"}}, "has its own error and weight"),
        ("consistency", {"loss": {"loss_type": "l1"}}, "has its own error and weight"),
        ("consistency", {"loss": {"offset_noise": 0.5}}, "loss.offset_noise to 0; got 'mse', 'simple' and 0.5"),
    ],
)
def test_what_does_not_fit_is_refused(variant, sections, message):
    with pytest.raises(ValueError, match=message):
        dfn.build(small_config(variant, **sections))


# The network of two times.


NETS = {
    "mlp": (MLP(hidden_size=8, depth=1, embedding_dim=8, num_classes=3), (4, 2)),
    "unet": (
        UNet(
            image_size=4,
            out_channels=2,
            channels=8,
            channel_multipliers=(1,),
            num_res_blocks=1,
            attention_resolutions=(),
            norm_groups=4,
            num_classes=3,
        ),
        (4, 4, 4, 1),
    ),
}


@pytest.mark.long
@pytest.mark.parametrize("name", NETS)
def test_a_backbone_is_conditioned_on_a_second_time(name):
    net, shape = NETS[name]
    module: nn.Module = TwoTimeConditioned(net)
    x, t, cond = jax.random.normal(jax.random.key(0), shape), jnp.linspace(0.2, 1.0, 4), jnp.arange(4)
    params = some_params(lambda key: module.init(key, x, t, cond))
    run = lambda t, cond=cond: module.apply(params, x, t, cond)  # noqa: E731
    assert run(t).shape == shape
    np.testing.assert_array_equal(run(t), run((t, t)))  # t alone is a step of no length
    np.testing.assert_allclose(run((0.7, 0.2)), run((jnp.full(4, 0.7), jnp.full(4, 0.2))), rtol=1e-5, atol=1e-6)
    # The output depends on r.
    _, slope = jax.jvp(lambda r: run((t, r)), (0.5 * t,), (jnp.ones(4),))
    assert np.all(np.max(np.abs(slope).reshape(4, -1), axis=1) > 1e-4)


def test_labels_are_not_the_length_of_a_step():
    """A step of half the way is 500 labels of a thousand, and half a time in the channel."""
    x, params = jnp.ones((2, 3)), {}
    out = TwoTimeConditioned(_Shown(), label_scale=1000.0).apply(params, x, (900.0, 400.0))
    np.testing.assert_allclose(out, 0.5, rtol=1e-6)


class _Shown(nn.Module):
    """Returns its last input channel in every channel."""

    @nn.compact
    def __call__(self, x, t, cond=None, *, train=False):
        return jnp.broadcast_to(x[..., -1:], x.shape)
