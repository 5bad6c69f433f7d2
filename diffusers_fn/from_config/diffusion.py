"""From a config to a diffusion model as pure functions.

Everything else in this library takes functions; in this package, and only here, a name in a config chooses one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.export
import jax.numpy as jnp
import numpy as np

from diffusers_fn import _random
from diffusers_fn._arrays import concrete, split_like
from diffusers_fn._types import ArrayLike
from diffusers_fn.denoisers import Denoiser, Transform, bind, chain, clip_x0, ignore_cond, make_denoiser
from diffusers_fn.from_config.derived import data_range
from diffusers_fn.from_config.guiding import GuidanceInputs, is_guided, make_guidance
from diffusers_fn.from_config.model import Model, make_model
from diffusers_fn.from_config.objectives import Objective, make_objective
from diffusers_fn.from_config.samplers import make_plan
from diffusers_fn.from_config.scores import make_invert, make_score
from diffusers_fn.from_config.signatures import Apply, Config, Invert, LossWithExtras, MakeDenoiser, Sample, Score
from diffusers_fn.from_config.tables import Tables
from diffusers_fn.from_config.traced_steps import make_traced_plan
from diffusers_fn.sampling import Samples, sample
from diffusers_fn.self_conditioning import self_conditioned
from diffusers_fn.solvers import Step

__all__ = ["Diffusion", "build", "build_denoiser", "build_objective"]

_TABLES = Tables()


class Diffusion(NamedTuple):
    """A model as pure functions; B is the batch, `shape` is config.data.shape.

    Attributes:
      init: (key) -> params.
      apply: (params, x, t, cond=None, *, x0=None, key=None, train=False) -> network output. x [B, *shape]; t [] or
        [B]; cond int labels [B], or the tokens of texts, or None for no condition; x0 [B, *shape] the previous
        estimate of x0, for self-conditioning; key is needed for dropout, when train is True.
      loss: (params, key, batch) -> (loss [B], metrics). batch: {"image": [B, *shape]}, in [-1, 1] unless
        config.data.normalize is False, and, for a
        class-conditional model, "label": int [B], or, for a text-conditional one, "text": the tokens [B, M], or
        their vectors [B, M, D]; "noise": [B, *shape], the noise of each example, where data and
        noise are coupled. key: one key, or [B] keys, with which the loss of an example does not depend on the rest of
        the batch or the device layout (except for dropout masks, drawn for the batch from the first key, and for the
        time samplers stratified and antithetic, which spread times over the batch). metrics: arrays [B].
        Objectives that need more than the parameters take it as a fourth argument: see `build_objective`.
      sample: (params, key, num_samples, *, cond=None, guidance_scale=None, eta=None, num_inference_steps=None,
        max_inference_steps=None, emit=None, transform=None, shape=None, x=None) -> Samples. num_samples: an integer, or
        a symbol of `jax.export.symbolic_shape`. cond: int labels [] or [num_samples], or the tokens of texts, or None
        for unconditional samples. None takes the config's value. key: one key, or [num_samples] keys.
        num_inference_steps: an integer; or an array [], which may be traced, of at most max_inference_steps (the
        config's number of steps by default): one compiled program then serves every number of steps, a loop runs as
        many as are asked for, and a trace of `emit` has zeros in front; traced numbers out of range are clipped to
        the range, and there is no reverse-mode derivative. transform: your own
        guidance, denoiser -> denoiser, applied to the model's (guided) denoiser before x0 is clipped; it is called with
        cond, also where the network is unconditional. shape: of one sample, if the network takes other sizes than
        config.data.shape (U-Nets and DiT do). x: [num_samples, ...], the state at the first level, for instance from
        `invert`; None draws noise.
      score: (params, x, level, cond=None) -> the score of the noisy data, grad_x log q(x | cond), [B, ...]. level: a
        Level, S = [] or [B], or a time [] or [B] in [0, 1], from the cleanest level of the config to the noisiest.
      invert: (params, x0, *, cond=None, num_inference_steps=None, refine=0) -> the noise [B, ...] at the first level of
        the config's grid, which `sample` with this x, the solver ddim, no guidance and no clipping turns back into x0,
        up to an error of first order in the step size. refine: as for `dfn.invert`.
    """

    init: Callable[[jax.Array], Any]
    apply: Apply
    loss: LossWithExtras
    sample: Sample
    score: Score
    invert: Invert


def build(config: Config, tables: Tables = _TABLES) -> Diffusion:
    """Returns the model that a config describes, as pure functions.

    Args:
      config: see `default_config` for its fields. data.num_classes = 0 is an unconditional model.
      tables: the functions that names in the config choose, see `from_config.tables`; extend them with your own.

    Raises:
      ValueError: if a field is missing or unknown or holds a name or number that is not allowed, or two fields
        contradict each other; the message states what is allowed.

    >>> from diffusers_fn.from_config.defaults import customise, default_config
    >>> diffusion = build(customise(default_config(), data={"shape": (2,)}))
    >>> params = jax.eval_shape(diffusion.init, jax.random.key(0))
    >>> samples = jax.eval_shape(lambda p, key: diffusion.sample(p, key, 16), params, jax.random.key(1))
    >>> samples.x0.shape
    (16, 2)
    """
    model = make_model(config, tables)
    inputs, conditions = model.inputs, model.conditions
    loss = make_objective(config.loss, inputs, tables.objectives).loss
    make_solver = make_plan(
        config.sampler,
        inputs.noise,
        inputs.variance,
        self_conditioned=inputs.self_conditioned,
        table=tables.solvers,
    )
    plan = make_traced_plan(
        make_solver, config.sampler.num_inference_steps, tables.solvers[config.sampler.name].min_levels
    )
    null_cond = None if conditions is None else conditions.null
    guide = make_guidance(config.sampler, GuidanceInputs(null_cond, inputs.parameterization), tables.guidances)
    takes_eta = tables.solvers[config.sampler.name].takes_eta
    drops_labels, bounds = bool(config.loss.label_dropout), data_range(config)
    if is_guided(config.sampler, tables.guidances) and not (conditions and drops_labels):
        raise ValueError(
            f"config.sampler.cfg_scale is {config.sampler.cfg_scale} with guidance {config.sampler.guidance!r}, but "
            "guidance needs a class-conditional model that learned to do without its label: set data.num_classes (or "
            "text.kind) and loss.label_dropout, or cfg_scale to 1 and guidance to 'classifier_free'"
        )

    def sample_fn(
        params: Any,
        key: jax.Array,
        num_samples: int,
        *,
        cond: Any = None,
        guidance_scale: ArrayLike | None = None,
        eta: ArrayLike | None = None,
        num_inference_steps: ArrayLike | None = None,
        max_inference_steps: int | None = None,
        emit: Callable[[Step], Any] | None = None,
        transform: Transform | None = None,
        shape: Sequence[int] | None = None,
        x: jax.Array | None = None,
    ) -> Samples:
        _check_num_samples(num_samples)
        if eta is not None and not takes_eta:
            raise ValueError(f"sampler {config.sampler.name!r} has no eta: set config.sampler.name to 'ddim'")
        if cond is not None and not conditions and transform is None:
            raise ValueError("cond was given, but this model is unconditional: set config.data.num_classes")
        _check_guidance_scale(guidance_scale, num_samples, conditional=cond is not None and bool(conditions))
        if conditions and not drops_labels:
            _check_labels_suffice(cond, guidance_scale)
        size = _size(shape, x, num_samples, model)
        if size != model.shape:
            model.check_size(params, size)
        solver, start_std, scan = plan(num_inference_steps, eta, max_inference_steps)

        transforms: list[Transform] = [] if conditions else [ignore_cond]
        if cond is not None and conditions:
            cond = conditions.broadcast(cond, num_samples, allow_null=drops_labels)
            transforms.append(guide(config.sampler.cfg_scale if guidance_scale is None else guidance_scale))
        if transform is not None:
            transforms.append(transform)
        transforms.append(lambda denoise: bind(denoise, cond))
        if config.sampler.clip_denoised and bounds is not None:
            transforms.append(clip_x0(max(abs(end) for end in bounds)))

        start_key, noise_key = _random.split(key, 2)
        if x is None:
            z = _random.draw(jax.random.normal, start_key, (num_samples, *size), jnp.result_type(float))
            x = start_std * z
        x = x if cond is None else split_like(x, cond)
        denoise = _transformed(model, params, chain(*transforms))
        return sample(noise_key, denoise, solver, x, emit=emit, scan=scan)

    objective = tables.objectives[config.loss.objective]
    score, invert = make_score(config, model, objective), make_invert(config, model, objective)
    return Diffusion(model.init, inputs.apply, loss, sample_fn, score, invert)


def build_denoiser(config: Config, tables: Tables = _TABLES) -> MakeDenoiser:
    """Returns (params, cond=None) -> the denoiser of a config's model, with nothing guided or clipped.

    For likelihoods, inversion, and your own guidance and solvers. Its noise levels are
    `from_config.noise.make_noise(config.noise_schedule)`.

    Raises:
      ValueError: as `build`.

    >>> from diffusers_fn.from_config.defaults import customise, default_config
    >>> from diffusers_fn.levels import Level
    >>> config = customise(default_config(), data={"shape": (2,)}, backbone={"hidden_size": 8, "depth": 1})
    >>> params = build(config).init(jax.random.key(0))
    >>> build_denoiser(config)(params)(jnp.ones((3, 2)), Level(0.8, 0.6, 10.0)).x0.shape
    (3, 2)
    """
    inputs = make_model(config, tables).inputs

    def denoiser(params: Any, cond: Any = None) -> Denoiser:
        return bind(make_denoiser(inputs.apply, params, inputs.parameterization), cond)

    return denoiser


def build_objective(config: Config, tables: Tables = _TABLES) -> Objective:
    """Returns the training objective of a config: `Diffusion.loss`, and the extras that it needs, if any.

    For `training.make_train_state(params, optimizer, objective.extras)` and
    `training.make_train_step(objective.loss, optimizer, update_extras=objective.update_extras)`.

    Raises:
      ValueError: as `build`.

    >>> from diffusers_fn.from_config.defaults import default_config
    >>> build_objective(default_config()).extras is None
    True
    """
    return make_objective(config.loss, make_model(config, tables).inputs, tables.objectives)


def _check_num_samples(num_samples: Any) -> None:
    """Raises ValueError unless it is a positive integer, or a symbol of `jax.export`, which stands for one."""
    if jax.export.is_symbolic_dim(num_samples):
        return
    if isinstance(num_samples, str) or num_samples != int(num_samples) or num_samples < 1:
        raise ValueError(f"num_samples must be an integer of at least 1; got {num_samples!r}")


def _size(shape: Sequence[int] | None, x: jax.Array | None, num_samples: int, model: Model) -> tuple[int, ...]:
    """The shape of one sample: `shape`, or that of the states x, or config.data.shape."""
    size = model.shape if shape is None else tuple(int(length) for length in shape)
    if len(size) != len(model.shape) or size[-1:] != model.shape[-1:]:
        raise ValueError(
            "shape, of one sample, must have as many axes, and as many channels on the last, as config.data.shape = "
            f"{model.shape}; got {size}"
        )
    if x is None:
        return size
    if x.ndim != len(size) + 1 or x.shape[0] != num_samples or (shape is not None and x.shape[1:] != size):
        raise ValueError(f"x, the states at the first level, must have shape {(num_samples, *size)}; got {x.shape}")
    return _size(x.shape[1:], None, num_samples, model)


def _transformed(model: Model, params: Any, transform: Transform) -> Any:
    """The model's denoiser after guidance and clipping; with self-conditioning it takes the previous estimate too."""

    def make(**options: Any) -> Denoiser:
        inputs = model.inputs
        return transform(make_denoiser(inputs.apply, params, inputs.parameterization, **options))

    return self_conditioned(lambda x0: make(x0=x0)) if model.inputs.self_conditioned else make()


def _check_guidance_scale(scale: Any, num_samples: int, *, conditional: bool) -> None:
    if scale is None:
        return
    if not conditional:
        raise ValueError("guidance_scale was given without cond: pass the class labels as cond")
    if jnp.shape(scale) not in ((), (num_samples,)):
        raise ValueError(f"guidance_scale must be [] or [{num_samples}]; got shape {jnp.shape(scale)}")


def _check_labels_suffice(cond: Any, guidance_scale: Any) -> None:
    """Raises ValueError if a prediction without a label is needed, by a network that never trained without one."""
    if cond is None or (guidance_scale is not None and not np.all(concrete(guidance_scale) == 1)):
        raise ValueError(
            "this model was trained with loss.label_dropout = 0: it has no prediction without a label. Pass cond, "
            "and no guidance_scale"
        )
