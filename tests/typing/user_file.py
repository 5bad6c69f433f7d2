"""Correct use of public functions: mypy --strict finds nothing here. Checked, never run."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import diffusers_fn as dfn
from diffusers_fn import backbones, grids, guidance, likelihood, losses, oracles, parameterizations, processes, solvers


def forward(key: jax.Array, x0: jax.Array) -> tuple[jax.Array, jax.Array]:
    schedule: dfn.NoiseSchedule = dfn.make_noise_schedule(dfn.linear_betas(1000))
    t = jax.random.randint(key, (x0.shape[0],), 0, 1000)
    noise = jax.random.normal(key, x0.shape)
    x_t = dfn.q_sample(schedule, x0, t, noise)
    mean, variance, log_variance = dfn.q_mean_variance(schedule, x0, t)
    level: dfn.Level = dfn.level_at(schedule, 500)
    x = dfn.add_noise(x0, noise, level)
    same = dfn.add_noise(x0, noise, dfn.Level(0.8, 0.6, 0.0))
    return dfn.predict_start_from_noise(schedule, x_t, t, noise), mean + variance + log_variance + x + same


def network(params: Any, x: jax.Array, t: jax.Array, cond: jax.Array | None = None) -> jax.Array:
    out: jax.Array = params["scale"] * x
    return out


def own_denoiser(x: jax.Array, level: dfn.Level, cond: Any = None) -> dfn.Prediction:
    return dfn.Prediction(x, jnp.zeros_like(x))


def samples(key: jax.Array, params: Any, labels: jax.Array) -> jax.Array:
    schedule = dfn.make_noise_schedule(dfn.cosine_betas(1000))
    levels = grids.trailing(schedule, 50)
    denoise = dfn.make_denoiser(network, params, parameterizations.epsilon)
    denoise = guidance.classifier_free(2.0, null_cond=10)(denoise)
    denoise = dfn.chain(lambda inner: dfn.bind(inner, labels), dfn.clip_x0())(denoise)
    solver: dfn.Solver = solvers.ddim(levels, eta=0.5)
    x = levels.sigma[0] * jax.random.normal(key, (4, 32, 32, 3))
    found: dfn.Samples = dfn.sample(key, denoise, solver, x, emit=lambda step: step.prediction.x0)
    again = dfn.img2img(key, own_denoiser, solvers.dpmpp_2m, levels, found.x0, strength=0.5, final_denoise=True)
    kept = dfn.inpaint(key, denoise, solver, x, again.x0, jnp.ones_like(x))
    return dfn.slerp(kept.x0, found.x0, 0.5)


def one_step(key: jax.Array, x: jax.Array, eps: jax.Array) -> jax.Array:
    schedule = dfn.respace(dfn.make_noise_schedule(dfn.linear_betas(1000)), np.array([999, 499]))
    x = dfn.denoise_step(key, schedule, eps, x, 1)
    x = dfn.ddim_step(schedule, x, 1, 0, eps, eta=0.0)
    return dfn.apply_guidance(x, eps, 7.5)


def levels_of_every_kind() -> dfn.Level:
    levels = grids.karras(10, sigma_max=80.0)
    process = processes.vp()
    first, rest = levels[0], levels[1:]
    print(float(first.sigma), [float(level.alpha) for level in rest], process(0.5).sigma)
    return dfn.append(levels, process(1e-3))


def training_step(key: jax.Array, x0: jax.Array, level: dfn.Level, params: Any) -> jax.Array:
    eps = jax.random.normal(key, x0.shape)
    out = network(params, dfn.add_noise(x0, eps, level), jnp.asarray(level.t))
    return losses.mse(out, dfn.target(parameterizations.v, x0, eps, level))


def exact(key: jax.Array, x: jax.Array) -> jax.Array:
    denoise = oracles.mixture([0.3, 0.7], [-1.0, 1.0], [0.1, 0.2])
    result = likelihood.log_prob(key, denoise, grids.karras(20), x)
    bits = likelihood.bits_per_dim(result.log_prob, (32, 32, 3))
    return bits + result.standard_error


def from_a_config(key: jax.Array, batch: Mapping[str, jax.Array]) -> jax.Array:
    config = dfn.customise(dfn.default_config(), data={"shape": (2,)}, backbone={"name": "mlp"})
    config.sampler.num_inference_steps = 20
    diffusion = dfn.build(config)
    params = diffusion.init(key)
    loss, metrics = diffusion.loss(params, key, batch)
    out = diffusion.sample(params, key, 16, guidance_scale=1.5, num_inference_steps=10).x0
    return out.mean() + loss.mean() + metrics["loss"].mean()


def published(x: jax.Array) -> Any:
    module, params = dfn.pretrained.load("unet", dtype=jnp.float32)
    own = backbones.DiT(image_size=32, patch_size=2)
    dfn.pretrained.save("out", module, params, "unet2d_condition")
    variables = own.init(jax.random.key(0), x, jnp.zeros(1))

    def apply(params: Any, x: jax.Array, t: jax.Array, cond: Any = None) -> Any:
        return own.apply({"params": params}, x, t, cond)

    denoise = dfn.make_denoiser(apply, variables["params"], parameterizations.v)
    also = dfn.make_denoiser(lambda p, x, t, cond: own.apply({"params": p}, x, t, cond), params, parameterizations.v)
    run = jax.jit(lambda x: dfn.sample(None, denoise, solvers.heun(grids.karras(5)), x).x0)
    return run(x), also


def training_loop(key: jax.Array, batches: list[dict[str, jax.Array]]) -> dfn.training.TrainState:
    config = dfn.default_config()
    objective = dfn.build_objective(config)
    optimizer = dfn.training.make_optimizer("adam", learning_rate=1e-4)
    state = dfn.training.make_train_state(dfn.build(config).init(key), optimizer, objective.extras)
    step = jax.jit(dfn.training.make_train_step(objective.loss, optimizer, ema_decay=0.99))
    for batch in batches:
        state, metrics = step(state, key, batch)
        print(float(metrics["loss"]))
    return state


def own_loss(params: Any, key: jax.Array, batch: Mapping[str, jax.Array]) -> tuple[jax.Array, dict[str, jax.Array]]:
    return jnp.sum(params["w"] * batch["image"], axis=1), {}


def in_parts(mean: float) -> tuple[jax.Array, int]:
    step = dfn.training.make_train_step(own_loss, dfn.training.make_optimizer())
    codec = dfn.latents.make_codec(lambda p, x: (x, x), lambda p, z: z, {})
    number, schedule = 3, dfn.linear_guidance_schedule(5, 10, 1.0, 7.0)
    del step, codec, mean
    return schedule, number
