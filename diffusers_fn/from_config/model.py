"""From a config to the network, its levels and its meaning: what training and sampling share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from diffusers_fn import _random, _threefry
from diffusers_fn._arrays import split_like, whole
from diffusers_fn._types import ArrayLike
from diffusers_fn.from_config import derived, few_step, self_conditioning
from diffusers_fn.from_config.batches import make_batch_reader
from diffusers_fn.from_config.choices import check_requirements, choose, listed
from diffusers_fn.from_config.conditions import Conditions, make_conditions, text_fields
from diffusers_fn.from_config.defaults import check_complete
from diffusers_fn.from_config.network import (
    backbone_fields,
    check_fit,
    check_other_size,
    check_time_label,
    init_params,
    make_backbone,
)
from diffusers_fn.from_config.noise import Noise, make_noise
from diffusers_fn.from_config.objective_types import ObjectiveEntry, ObjectiveInputs
from diffusers_fn.from_config.outputs import VARIANCES, make_parameterization
from diffusers_fn.from_config.tables import Tables
from diffusers_fn.from_config.time_samplers import make_level_sampler
from diffusers_fn.noise_schedules import level_at
from diffusers_fn.parameterizations import Parameterization

__all__ = ["Model", "make_model"]


class Model(NamedTuple):
    """A network as pure functions, and what an objective and a sampler need to know of it.

    Attributes:
      init: (key) -> params.
      inputs: for an objective; `inputs.apply` is the network.
      shape: of one example.
      check_size: (params, shape) raises ValueError unless the network takes examples of this shape too.
      conditions: class labels or texts; None for an unconditional model.
    """

    init: Callable[[jax.Array], Any]
    inputs: ObjectiveInputs
    shape: tuple[int, ...]
    check_size: Callable[[Any, tuple[int, ...]], None]
    conditions: Conditions | None = None


def make_model(config: ConfigDict, tables: Tables) -> Model:
    """Returns the model that a config describes.

    Raises:
      ValueError: as `build`, except for the fields of the sampler.
    """
    check_complete(config)
    shape = tuple(config.data.shape)
    objective: ObjectiveEntry = choose("loss.objective", config.loss.objective, tables.objectives)
    num_classes = _num_classes(config, tables)
    conditions = make_conditions(config, num_classes)
    module = _make_network(config, shape, num_classes, objective, tables)
    check_time_label(config.backbone, config.noise_schedule.time_label)
    noise = make_noise(config.noise_schedule)
    parameterization = make_parameterization(
        config.parameterization,
        sigma_data=config.sigma_data,
        score_scaling=config.score_scaling,
        scale_input=config.scale_input,
    )
    variance = choose("variance", config.variance, VARIANCES)
    _check_pure_noise(config, noise, parameterization)
    _check_learned_variance(config, variance.learned, objective, tables)
    _check_two_times(config, objective, tables)
    _check_null_class(config, num_classes)
    check_requirements(config, "loss.objective", objective.requires)
    read_batch = make_batch_reader(shape, conditions, config.loss.label_dropout)
    sample_level = make_level_sampler(config.loss, noise)
    some_label = None if conditions is None else np.zeros((1, *conditions.null.shape), conditions.null.dtype)
    check_fit(module, some_label, shape, config.backbone.name, doubled=variance.learned)

    def init(key: jax.Array) -> Any:
        return init_params(_random.one_key(key), jnp.zeros((1, *shape)), jnp.ones((1,)), some_label, module=module)

    apply = _make_apply(module, dropout=config.backbone.get("dropout", 0.0), takes_x0=bool(config.self_conditioning))
    inputs = ObjectiveInputs(
        apply,
        noise,
        parameterization,
        variance,
        config.sigma_data,
        num_classes,
        bool(config.self_conditioning),
        sample_level,
        read_batch,
        derived.data_range(config),
    )

    def check_size(params: Any, size: tuple[int, ...]) -> None:
        check_other_size(apply, params, some_label, size, shape, config.backbone.name)

    return Model(init, inputs, shape, check_size, conditions)


def _num_classes(config: ConfigDict, tables: Tables) -> int:
    """The number of classes of the network; a backbone section without the field has its default, that of the data."""
    declared = {field.name for field in backbone_fields(config.backbone.name, tables.backbones)}
    if "num_classes" in declared - set(config.backbone):
        return derived.num_data_classes(config)
    return derived.num_classes(config)


def _make_network(
    config: ConfigDict, shape: tuple[int, ...], num_classes: int, objective: ObjectiveEntry, tables: Tables
) -> nn.Module:
    module = make_backbone(config.backbone, shape, num_classes, tables.backbones, text=text_fields(config))
    if objective.two_times:
        module = few_step.wrap_network(module, config.noise_schedule.noise_steps)
    module = self_conditioning.wrap_network(module, config.self_conditioning)
    if config.self_conditioning and not objective.self_conditioning:
        trained_by = listed([repr(name) for name, entry in tables.objectives.items() if entry.self_conditioning], "or")
        raise ValueError(
            f"config.self_conditioning is {config.self_conditioning}, which the objective {config.loss.objective!r} "
            f"does not train: set loss.objective to {trained_by}, or self_conditioning to 0"
        )
    return module


def _make_apply(module: nn.Module, *, dropout: float, takes_x0: bool) -> Callable[..., jax.Array]:
    def apply(
        params: Any,
        x: jax.Array,
        t: ArrayLike,
        cond: Any = None,
        *,
        x0: jax.Array | None = None,
        key: jax.Array | None = None,
        train: bool = False,
    ) -> jax.Array:
        if key is None and train and dropout:
            raise ValueError("apply with train=True draws dropout masks: pass key")
        if x0 is not None and not takes_x0:
            raise ValueError("x0 was given, but self-conditioning is off: set config.self_conditioning")
        params, (t, cond) = whole(params, x), split_like((t, cond), x)
        rngs = {} if key is None else {"dropout": _threefry.faster(key)}
        estimate: dict[str, Any] = {} if x0 is None else {"x0": x0}
        out = module.apply({"params": params}, x, t, cond, **estimate, train=train, rngs=rngs)
        assert isinstance(out, jax.Array)  # no (out, mutated variables): none are mutable
        return out

    return apply


def _check_pure_noise(config: ConfigDict, noise: Noise, parameterization: Parameterization) -> None:
    """Raises ValueError if x0 cannot be computed from the network's output at the noisiest level."""
    if noise.process is not None:
        noisiest = noise.process(noise.process.t_max)
    else:
        assert noise.schedule is not None
        noisiest = level_at(noise.schedule, config.noise_schedule.noise_steps - 1)
    p, q = parameterization.line(noisiest)
    if not abs(noisiest.alpha * q - noisiest.sigma * p) > 0:
        ends = "zero_terminal_snr ends" if noise.process is None else f"{config.noise_schedule.process!r} ends"
        raise ValueError(
            f"parameterization {config.parameterization!r} does not determine x0 at pure noise, where "
            f"noise_schedule.{ends}: set config.parameterization to 'v', 'x0' or 'velocity'"
        )


def _check_two_times(config: ConfigDict, objective: ObjectiveEntry, tables: Tables) -> None:
    """Raises ValueError unless sampler and objective agree on whether the network takes two times."""
    solver = choose("sampler.name", config.sampler.name, tables.solvers)
    if solver.two_times != objective.two_times:
        names = [
            listed([repr(name) for name, entry in table.items() if entry.two_times], "or")
            for table in (tables.solvers, tables.objectives)
        ]
        raise ValueError(
            f"config.sampler.name {names[0]} and loss.objective {names[1]} go together; got "
            f"{config.sampler.name!r} and {config.loss.objective!r}"
        )


def _check_learned_variance(config: ConfigDict, learned: bool, objective: ObjectiveEntry, tables: Tables) -> None:
    """Raises ValueError unless network, variance and objective agree on a learned variance."""
    doubled = bool(config.backbone.get("learned_variance", False))
    if learned and not doubled:
        raise ValueError(
            f"config.variance is {config.variance!r}, but the network has no variance output: set "
            "config.backbone.learned_variance to True (a backbone that has it), or variance to 'fixed_small'"
        )
    if doubled and not learned:
        raise ValueError(
            "config.backbone.learned_variance is True, but nothing reads or trains it: set config.variance to "
            f"'learned_range' and loss.objective to 'hybrid'; got variance = {config.variance!r}"
        )
    if learned and not objective.learned_variance:
        trained_by = listed([repr(name) for name, entry in tables.objectives.items() if entry.learned_variance], "or")
        raise ValueError(
            f"config.variance is {config.variance!r}, which the objective {config.loss.objective!r} does not train: "
            f"set config.loss.objective to {trained_by}"
        )
    if not learned and objective.learned_variance:
        raise ValueError(
            f"config.loss.objective is {config.loss.objective!r}, which trains a learned variance: set config.variance "
            f"to 'learned_range' and backbone.learned_variance to True; got variance = {config.variance!r}"
        )


def _check_null_class(config: ConfigDict, num_classes: int) -> None:
    """Raises ValueError if labels are dropped for a network that has no null class."""
    if num_classes and config.loss.label_dropout and not config.backbone.get("null_class", True):
        raise ValueError(
            "config.backbone.null_class is False: the network cannot do without a label. Set loss.label_dropout to 0, "
            f"or null_class to True; got label_dropout = {config.loss.label_dropout}"
        )
