"""From a config to a diffusion model as pure functions.

Everything else in this library takes functions; in this package, and only there, a string in a config chooses one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from diffusers_fn import _random, _threefry
from diffusers_fn._arrays import concrete
from diffusers_fn.denoisers import Denoiser, Transform, bind, chain, clip_x0, ignore_cond, make_denoiser
from diffusers_fn.from_config import few_step, self_conditioning
from diffusers_fn.from_config.batches import check_labels
from diffusers_fn.from_config.choices import check_sections, choose
from diffusers_fn.from_config.guiding import make_guidance
from diffusers_fn.from_config.network import check_fit, init_params, make_backbone
from diffusers_fn.from_config.noise import Noise, make_noise
from diffusers_fn.from_config.objectives import (
    VARIANCES,
    Objective,
    Parts,
    make_draw_level,
    make_objective,
    make_parameterization,
    make_read,
)
from diffusers_fn.from_config.samplers import make_plan
from diffusers_fn.noise_schedules import level_at
from diffusers_fn.parameterizations import Parameterization
from diffusers_fn.sampling import Samples, sample
from diffusers_fn.self_conditioning import self_conditioned
from diffusers_fn.solvers import Solver, Step, start_level


class Diffusion(NamedTuple):
    """A model variant as pure functions; B is the batch, `shape` is config.data.shape.

    Attributes:
      init: (key) -> params.
      apply: (params, x, t, cond=None, *, x0=None, key=None, train=False) -> network output. x [B, *shape]; t [] or
        [B]; cond int labels [B] or None for no condition; x0 [B, *shape] the last estimate of x0, for
        self-conditioning; key is needed for dropout, when train is True.
      loss: (params, key, batch) -> (loss [B], metrics). batch: {"image": [B, *shape] in [-1, 1]} and, for a
        class-conditional model, "label": int [B]; "noise": [B, *shape], the noise of each example, where data and
        noise are coupled. key: one key, or [B] keys, which make an example's loss independent of the rest of the
        batch and of the device layout (but for dropout masks, drawn for the batch from the first key, and for the
        time samplers stratified and antithetic, which spread times over the batch). metrics: arrays [B].
        Objectives that need more than the parameters take it as a fourth argument: see `build_objective`.
      sample: (params, key, num_samples, *, cond=None, guidance_scale=None, eta=None, num_inference_steps=None,
        emit=None, transform=None) -> Samples. cond: int labels [] or [num_samples], or None for unconditional
        samples. What is None takes the config's value. key: one key, or [num_samples] keys. transform: guidance of
        your own, denoiser -> denoiser, applied to the model's (guided) denoiser before x0 is clipped; it is called
        with cond, also where the network is unconditional.
    """

    init: Callable[[jax.Array], Any]
    apply: Callable[..., jax.Array]
    loss: Callable[..., tuple[jax.Array, dict[str, jax.Array]]]
    sample: Callable[..., Samples]


class _Model(NamedTuple):
    """What `build` and `build_denoiser` share."""

    init: Callable[[jax.Array], Any]
    apply: Callable[..., jax.Array]
    parts: Parts
    num_classes: int


def build(config: ConfigDict) -> Diffusion:
    """Returns the model that a config describes, as pure functions.

    configs/default.py has every field that is read, with a comment (sections data, backbone, noise_schedule, loss,
    sampler; parameterization, variance, ...). backbone.num_classes = 0 is an unconditional model.

    Raises:
      ValueError: if a field is missing or unknown or holds a name or number that is not allowed, or two fields
        contradict each other; the message says what is.

    >>> from configs import ddpm_toy2d
    >>> diffusion = build(ddpm_toy2d.get_config())
    >>> params = jax.eval_shape(diffusion.init, jax.random.key(0))
    >>> samples = jax.eval_shape(lambda p, key: diffusion.sample(p, key, 16), params, jax.random.key(1))
    >>> samples.x0.shape
    (16, 2)
    """
    model = _make_model(config)
    parts, num_classes = model.parts, model.num_classes
    label_dropout = config.loss.label_dropout
    loss = make_objective(parts).loss
    plan_solver = make_plan(config, parts.noise, parts.variance)
    guide = make_guidance(config, null_cond=num_classes)
    guided = config.sampler.cfg_scale != 1 or config.sampler.guidance == "classifier_free_pp"
    if guided and not (num_classes and label_dropout):
        raise ValueError(
            f"config.sampler.cfg_scale is {config.sampler.cfg_scale} with guidance {config.sampler.guidance!r}, but "
            "guidance needs a class-conditional model that learned to do without its label: set backbone.num_classes "
            "and loss.label_dropout, or cfg_scale to 1 and guidance to 'classifier_free'"
        )

    def sample_fn(
        params: Any,
        key: jax.Array,
        num_samples: int,
        *,
        cond: Any = None,
        guidance_scale: Any = None,
        eta: Any = None,
        num_inference_steps: int | None = None,
        emit: Callable[[Step], Any] | None = None,
        transform: Transform | None = None,
    ) -> Samples:
        if num_samples != int(num_samples) or num_samples < 1:
            raise ValueError(f"num_samples must be an integer of at least 1; got {num_samples}")
        if eta is not None and config.sampler.name != "ddim":
            raise ValueError(f"sampler {config.sampler.name!r} has no eta: set config.sampler.name to 'ddim'")
        if cond is not None and not num_classes and transform is None:
            raise ValueError("cond was given, but this model is unconditional: set config.backbone.num_classes")
        if guidance_scale is not None and (cond is None or not num_classes):
            raise ValueError("guidance_scale was given without cond: pass the class labels as cond")
        if guidance_scale is not None and jnp.shape(guidance_scale) not in ((), (num_samples,)):
            raise ValueError(f"guidance_scale must be [] or [{num_samples}]; got shape {jnp.shape(guidance_scale)}")
        needs_null = cond is None or (guidance_scale is not None and not np.all(concrete(guidance_scale) == 1))
        if num_classes and needs_null and not label_dropout:
            raise ValueError(
                "this model was trained with loss.label_dropout = 0: it has no prediction without a label. Pass cond, "
                "and no guidance_scale"
            )
        scale = config.sampler.cfg_scale if guidance_scale is None else guidance_scale
        solver = plan_solver(num_inference_steps, eta)

        transforms: list[Transform] = []
        if cond is not None and num_classes:
            labels = check_labels(cond, num_classes, num_samples, allow_null=bool(label_dropout))
            cond = jnp.broadcast_to(labels, (num_samples,))
            transforms.append(guide(scale))
        elif not num_classes:
            transforms.append(ignore_cond)
        if transform is not None:
            transforms.append(transform)
        transforms.append(lambda denoise: bind(denoise, cond))
        if config.sampler.clip_denoised:
            transforms.append(clip_x0())

        def make(**told: Any) -> Denoiser:
            return chain(*transforms)(make_denoiser(model.apply, params, parts.parameterization, **told))

        denoise: Any = self_conditioned(lambda x0: make(x0=x0)) if config.self_conditioning else make()

        start_key, noise_key = _random.split(key, 2)
        z = _random.draw(jax.random.normal, start_key, (num_samples, *parts.shape), jnp.result_type(float))
        x = _start_std(solver) * z
        return sample(noise_key, denoise, solver, x, emit=emit)

    return Diffusion(model.init, model.apply, loss, sample_fn)


def build_denoiser(config: ConfigDict) -> Callable[..., Denoiser]:
    """Returns (params, cond=None) -> the denoiser that the model of a config is, with nothing guided or clipped.

    For likelihoods, inversion, guidance and solvers of your own. Levels: `make_noise(config)`.

    Raises:
      ValueError: as `build`.

    >>> from configs import ddpm_toy2d
    >>> from diffusers_fn.levels import Level
    >>> config = ddpm_toy2d.get_config()
    >>> params = build(config).init(jax.random.key(0))
    >>> build_denoiser(config)(params)(jnp.ones((3, 2)), Level(0.8, 0.6, 10.0)).x0.shape
    (3, 2)
    """
    model = _make_model(config)
    return lambda params, cond=None: bind(make_denoiser(model.apply, params, model.parts.parameterization), cond)


def build_objective(config: ConfigDict) -> Objective:
    """Returns the training objective of a config: `Diffusion.loss`, and the extras that it needs, if any.

    For `training.make_train_state(params, optimizer, objective.extras)` and
    `training.make_train_step(objective.loss, optimizer, update_extras=objective.update_extras)`.

    Raises:
      ValueError: as `build`.

    >>> from configs import ddpm_toy2d
    >>> build_objective(ddpm_toy2d.get_config()).extras is None
    True
    """
    return make_objective(_make_model(config).parts)


def _make_model(config: ConfigDict) -> _Model:
    check_sections(config)
    shape = tuple(config.data.shape)
    module = few_step.wrap_network(config, make_backbone(config.backbone))
    module = self_conditioning.wrap_network(config, module)
    num_classes = int(config.backbone.get("num_classes") or 0)
    noise = make_noise(config)
    parameterization = make_parameterization(config)
    _check_pure_noise(config, noise, parameterization)
    variance = choose("variance", config.variance, VARIANCES)
    _check_learned_variance(config, variance.learned)
    _check_two_times(config)
    read, draw_level = make_read(config, shape), make_draw_level(config, noise)
    if num_classes and config.loss.label_dropout and not config.backbone.get("null_class", True):
        raise ValueError(
            "config.backbone.null_class is False: the network cannot do without a label. Set loss.label_dropout to 0, "
            f"or null_class to True; got label_dropout = {config.loss.label_dropout}"
        )
    some_label = np.zeros((1,), np.int32) if num_classes else None
    check_fit(module, some_label, shape, config.backbone.name, doubled=variance.learned)

    def init(key: jax.Array) -> Any:
        return init_params(key, jnp.zeros((1, *shape)), jnp.ones((1,)), some_label, module=module)

    def apply(
        params: Any,
        x: jax.Array,
        t: Any,
        cond: Any = None,
        *,
        x0: jax.Array | None = None,
        key: jax.Array | None = None,
        train: bool = False,
    ) -> jax.Array:
        if key is None and train and config.backbone.get("dropout", 0.0):
            raise ValueError("apply with train=True draws dropout masks: pass key")
        if x0 is not None and not config.self_conditioning:
            raise ValueError("x0 was given, but this network is told no estimate: set config.self_conditioning")
        rngs = {} if key is None else {"dropout": _threefry.faster(key)}
        estimate: dict[str, Any] = {} if x0 is None else {"x0": x0}
        out = module.apply({"params": params}, x, t, cond, **estimate, train=train, rngs=rngs)
        assert isinstance(out, jax.Array)  # and no (out, mutated variables): none are mutable
        return out

    return _Model(
        init, apply, Parts(config, shape, apply, noise, parameterization, variance, draw_level, read), num_classes
    )


def _check_pure_noise(config: ConfigDict, noise: Noise, parameterization: Parameterization) -> None:
    """Raises ValueError if the model is to start from levels where its output says nothing about x0."""
    if noise.process is not None:
        noisiest = noise.process(noise.process.t_max)
    else:
        assert noise.schedule is not None
        noisiest = level_at(noise.schedule, config.noise_schedule.noise_steps - 1)
    p, q = parameterization.line(noisiest)
    if not abs(noisiest.alpha * q - noisiest.sigma * p) > 0:
        ends = "zero_terminal_snr ends" if noise.process is None else f"{config.noise_schedule.process!r} ends"
        raise ValueError(
            f"parameterization {config.parameterization!r} says nothing about x0 at pure noise, where "
            f"noise_schedule.{ends}: set config.parameterization to 'v', 'x0' or 'velocity'"
        )


def _check_two_times(config: ConfigDict) -> None:
    if (config.sampler.name == "jump") != (config.loss.objective == "mean_flow"):
        raise ValueError(
            "config.sampler.name 'jump' and loss.objective 'mean_flow' go together; got "
            f"{config.sampler.name!r} and {config.loss.objective!r}"
        )


def _check_learned_variance(config: ConfigDict, learned: bool) -> None:
    doubled = bool(config.backbone.get("learned_variance", False))
    if learned and not doubled:
        raise ValueError(
            f"config.variance is {config.variance!r}, but the network puts out no variance: set "
            "config.backbone.learned_variance to True (a backbone that has it), or variance to 'fixed_small'"
        )
    if doubled and not learned:
        raise ValueError(
            "config.backbone.learned_variance is True, but nothing reads or trains it: set config.variance to "
            f"'learned_range' and loss.objective to 'hybrid'; got variance = {config.variance!r}"
        )
    if learned and config.loss.objective not in ("hybrid", "vlb"):
        raise ValueError(
            f"config.variance is {config.variance!r}, which the objective {config.loss.objective!r} does not train: "
            "set config.loss.objective to 'hybrid' or 'vlb'"
        )
    if not learned and config.loss.objective in ("hybrid", "vlb"):
        raise ValueError(
            f"config.loss.objective is {config.loss.objective!r}, which trains a learned variance: set config.variance "
            f"to 'learned_range' and backbone.learned_variance to True; got variance = {config.variance!r}"
        )


def _start_std(solver: Solver) -> float:
    """The standard deviation of x at the first level, for data of standard deviation 1."""
    level = start_level(solver)
    return float(np.sqrt(level.alpha**2 + level.sigma**2)[0])
