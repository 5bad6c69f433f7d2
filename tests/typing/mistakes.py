"""Mistakes that mypy --strict finds, one in each marked line and none elsewhere. Checked, never run."""
# ruff: noqa: F841, RUF059

import jax
import jax.numpy as jnp

import diffusers_fn as dfn
from diffusers_fn import grids, guidance, losses, oracles, processes, solvers, training


def mistakes() -> None:
    key = jax.random.key(0)
    x = jnp.zeros((4, 2))
    schedule = dfn.make_noise_schedule(dfn.linear_betas(1000))
    levels = grids.karras(10)
    denoise = oracles.gaussian(0.0, 1.0)

    # A value of another type
    dfn.linear_betas("1000")  # mistake
    dfn.q_sample(levels, x, jnp.zeros(4, int), x)  # mistake
    dfn.level_at(schedule, "first")  # mistake
    dfn.add_noise(x, x, 0.5)  # mistake
    dfn.sample(key, denoise, solvers.ddim, x)  # mistake
    dfn.sample(key, denoise, levels, x)  # mistake
    dfn.sample(key, solvers.ddim(levels), denoise, x)  # mistake
    solvers.ddim(schedule)  # mistake
    solvers.ddim(levels, eta="0.5")  # mistake
    solvers.heun(10)  # mistake
    grids.karras("10")  # mistake
    grids.trailing(levels, 10)  # mistake
    dfn.make_denoiser(lambda params, x, t, cond: x, {}, "epsilon")  # mistake
    guidance.classifier_free("2.0", null_cond=10)  # mistake
    dfn.img2img(key, denoise, solvers.ddim(levels), levels, x)  # mistake
    dfn.slerp(x, x, "half")  # mistake
    dfn.build("configs/ddpm.py")  # mistake
    processes.vp("0.1")  # mistake
    dfn.Level("1", "0", "0")  # mistake
    dfn.pretrained.load(3)  # mistake
    dfn.pretrained.load("unet", config="config.json")  # mistake

    # None where a value is needed
    dfn.invert(denoise, None, x)  # mistake
    dfn.make_noise_schedule(None)  # mistake
    dfn.ddim_step(schedule, x, None, 0, x)  # mistake
    losses.mse(x, None)  # mistake

    # An argument that is missing, too much or called something else
    dfn.q_sample(schedule, x, 3)  # mistake
    dfn.sample(key, denoise, solvers.ddim(levels))  # mistake
    solvers.ddim(levels, etta=0.5)  # mistake
    dfn.sample(key, denoise, solvers.ddim(levels), x, steps=10)  # mistake
    dfn.img2img(key, denoise, solvers.ddim, levels, x, final=True)  # mistake
    dfn.apply_guidance(x, x)  # mistake
    dfn.denoise_step(schedule, x, x, 3)  # mistake
    dfn.likelihood.log_prob(key, denoise, levels, x, probes=3)  # mistake
    dfn.backbones.DiT(patchsize=2)  # mistake
    training.make_optimizer("adam", lr=1e-3)  # mistake
    guidance.classifier_free(2.0)  # mistake

    # A result that is used as something else
    mean, variance = dfn.q_mean_variance(schedule, x, 3)  # mistake
    noisy, eps, more = dfn.forward_diffusion(key, schedule, x, 3)  # mistake
    number: float = dfn.sample(key, denoise, solvers.ddim(levels), x).x0  # mistake
    images: jax.Array = dfn.sample(key, denoise, solvers.ddim(levels), x)  # mistake
    schedule(3)  # mistake
    solvers.ddim(levels)(x)  # mistake
    denoise(x, levels[0]).x0()  # mistake
    print(levels["sigma"])  # mistake
    module, params, config = dfn.pretrained.load("unet")  # mistake

    # A name that does not exist
    print(schedule.beta)  # mistake
    print(levels.sigmas)  # mistake
    print(denoise(x, levels[0]).epsilon)  # mistake
    print(dfn.sample(key, denoise, solvers.ddim(levels), x).images)  # mistake
    print(dfn.smaple)  # mistake
    print(solvers.ddpm)  # mistake
    dfn.pretrained.from_file("unet")  # mistake
    print(dfn.few_step.jumps)  # mistake
    diffusion = dfn.build(dfn.default_config())
    print(diffusion.sampel)  # mistake
    diffusion.sample(diffusion.init(key), key, "16")  # mistake
    diffusion.sample(diffusion.init(key), key, 16, num_steps=10)  # mistake
    diffusion.sample(diffusion.init(key), key)  # mistake
    diffusion.init()  # mistake
    loss, metrics, extras = diffusion.loss(diffusion.init(key), key, {"image": x})  # mistake
