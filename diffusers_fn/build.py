"""From a config to pure functions: the only file that reads names.

Everything else in this library takes functions; here, and only here, a string in a config chooses one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from diffusers_fn import _random, backbones, grids, losses, noise_schedules, parameterizations, solvers, variances
from diffusers_fn._arrays import check_data, concrete
from diffusers_fn.backbones import fields
from diffusers_fn.denoisers import bind, chain, clip_x0, make_denoiser, network_output
from diffusers_fn.discrete import check_eta
from diffusers_fn.guidance import classifier_free
from diffusers_fn.levels import Level, add_noise, log_snr
from diffusers_fn.noise_schedules import NoiseSchedule, level_at
from diffusers_fn.processes import Process, tabulated
from diffusers_fn.sampling import Samples, sample
from diffusers_fn.solvers import Solver, Step

BACKBONES: Mapping[str, type[nn.Module]] = {
    "mlp": backbones.MLP,
    "unet": backbones.UNet,
    "unet2d": backbones.UNet2D,
    "song_unet": backbones.SongUNet,
    "dhariwal_unet": backbones.DhariwalUNet,
    "unet1d": backbones.UNet1D,
    "dit": backbones.DiT,
    "uvit": backbones.UViT,
    "unet2d_condition": backbones.UNet2DCondition,  # inside a ClassContext
}

DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}

NOISE_SCHEDULES: Mapping[str, Callable[..., np.ndarray]] = {
    "linear": noise_schedules.linear_betas,
    "scaled_linear": noise_schedules.scaled_linear_betas,
    "quadratic": noise_schedules.quadratic_betas,
    "sqrt": noise_schedules.sqrt_betas,
    "sigmoid": noise_schedules.sigmoid_betas,
    "cosine": lambda num_timesteps, beta_start, beta_end: noise_schedules.cosine_betas(num_timesteps),
}

# What the network is told of a level, from alpha and sigma; None is the step's number, counted from 0.
TIME_LABELS: Mapping[str, Callable[[Level], Any] | None] = {
    "step": None,
    "log_sigma": lambda level: -log_snr(level) / 8,  # log(sigma / alpha) / 4, EDM's c_noise
    "sigma": lambda level: level.sigma / level.alpha,
}

PARAMETERIZATIONS: Mapping[str, Any] = {
    "epsilon": lambda config: parameterizations.epsilon,
    "x0": lambda config: parameterizations.x0,
    "v": lambda config: parameterizations.v,
    "score": lambda config: parameterizations.score,
    "velocity": lambda config: parameterizations.velocity,
    "edm": lambda config: parameterizations.edm(config.sigma_data),
}

VARIANCES = {"fixed_small": variances.fixed_small, "fixed_large": variances.fixed_large}

LOSS_TYPES = {"mse": losses.mse, "l1": losses.l1, "huber": losses.huber}

WEIGHTS: Mapping[str, Callable[[ConfigDict], losses.Weight | None]] = {
    "simple": lambda config: None,
    "uniform": lambda config: losses.uniform,
    "snr": lambda config: losses.snr,
    "min_snr": lambda config: losses.min_snr(config.loss.min_snr_gamma),
    "truncated_snr": lambda config: losses.truncated_snr,
    "p2": lambda config: losses.p2(config.loss.p2_gamma, config.loss.p2_k),
    "edm": lambda config: losses.edm(config.sigma_data),
    "sigmoid": lambda config: losses.sigmoid(config.loss.sigmoid_bias),
}

TIME_SAMPLERS: Mapping[str, Callable[[ConfigDict], losses.TimeSampler]] = {
    "uniform": lambda config: losses.uniform_time,
    "stratified": lambda config: losses.stratified_time,
    "antithetic": lambda config: losses.antithetic_time,
    "logit_normal": lambda config: losses.logit_normal_time(config.loss.logit_mean, config.loss.logit_std),
}

GRIDS: Mapping[str, Callable[[NoiseSchedule, int], Level]] = {
    "uniform": grids.linspace,
    "quadratic": grids.quadratic,
    "leading": grids.leading,
    "trailing": grids.trailing,
    "log_snr": grids.uniform_log_snr,
    "karras": lambda schedule, num_steps: grids.karras(num_steps, schedule=schedule),
    "exponential": lambda schedule, num_steps: grids.exponential(num_steps, schedule=schedule),
    "cosine": lambda schedule, num_steps: grids.cosine(num_steps, schedule=schedule),
    "beta": grids.beta,
}


class Plan(NamedTuple):
    """What a solver is made from: levels, the process that they lie on (None on a table that ends at pure noise), eta
    and the variance of a reverse step."""

    levels: Level
    process: Process | None
    eta: Any
    variance: variances.Variance


def _plain(make: Callable[[Level], Solver]) -> Callable[[Plan], Solver]:
    return lambda plan: make(plan.levels)


def _inner(make: Callable[..., Solver]) -> Callable[[Plan], Solver]:
    return lambda plan: make(plan.levels, process=plan.process)


SOLVERS: Mapping[str, Callable[[Plan], Solver]] = {
    "ddim": lambda plan: solvers.ddim(plan.levels, plan.eta),
    "ancestral": lambda plan: solvers.ancestral(plan.levels, plan.variance),
    "euler": _plain(solvers.euler),
    "heun": _plain(solvers.heun),
    "midpoint": _inner(solvers.midpoint),
    "rk4": _inner(solvers.rk4),
    "dpm2": _inner(solvers.dpm2),
    "dpm_solver": _inner(solvers.dpm_solver),
    "dpmpp_2s": _inner(solvers.dpmpp_2s),
    "dpmpp_3s": _inner(solvers.dpmpp_3s),
    "dpmpp_1": _plain(solvers.dpmpp_1),
    "dpmpp_2m": _plain(solvers.dpmpp_2m),
    "dpmpp_3m": _plain(solvers.dpmpp_3m),
    "deis": _plain(solvers.deis),
    "lms": _plain(solvers.lms),
    "ipndm": _plain(solvers.ipndm),
    "plms": _plain(solvers.plms),
    "pndm": _inner(solvers.pndm),
    "unipc": _plain(solvers.unipc),
    "euler_ancestral": _plain(solvers.euler_ancestral),
    "dpm2_ancestral": _inner(solvers.dpm2_ancestral),
    "dpmpp_2s_ancestral": _inner(solvers.dpmpp_2s_ancestral),
    "dpmpp_sde": _inner(solvers.dpmpp_sde),
    "dpmpp_2m_sde": _plain(solvers.dpmpp_2m_sde),
    "dpmpp_3m_sde": _plain(solvers.dpmpp_3m_sde),
    "sa_solver": _plain(solvers.sa_solver),
    "reverse_diffusion": _plain(solvers.reverse_diffusion),
    "lcm": _plain(solvers.lcm),
}


class Diffusion(NamedTuple):
    """A model variant as pure functions; B is the batch, `shape` is config.data.shape.

    Attributes:
      init: (key) -> params.
      apply: (params, x, t, cond=None, *, key=None, train=False) -> network output. x [B, *shape]; t [] or [B];
        cond int labels [B] or None for no condition; key is needed for dropout, when train is True.
      loss: (params, key, batch) -> (loss [B], metrics). batch: {"image": [B, *shape] in [-1, 1]} and, for a
        class-conditional model, "label": int [B]. key: one key, or [B] keys, which make an example's loss
        independent of the rest of the batch and of the device layout (but for dropout masks, drawn for the batch
        from the first key, and for the time samplers stratified and antithetic, which spread times over the batch).
        metrics: arrays [B].
      sample: (params, key, num_samples, *, cond=None, guidance_scale=None, eta=None, num_inference_steps=None,
        emit=None) -> Samples. cond: int labels [] or [num_samples], or None for unconditional samples. What is None
        takes the config's value. key: one key, or [num_samples] keys.
    """

    init: Callable[[jax.Array], Any]
    apply: Callable[..., jax.Array]
    loss: Callable[[Any, jax.Array, Mapping[str, jax.Array]], tuple[jax.Array, dict[str, jax.Array]]]
    sample: Callable[..., Samples]


def build(config: ConfigDict) -> Diffusion:
    """Returns the model that a config describes, as pure functions.

    Fields read (see `configs/` for whole files): data.shape; backbone.name and the fields of that module;
    noise_schedule.{beta_schedule, noise_steps, beta_start, beta_end, zero_terminal_snr, time_label}; parameterization;
    variance; sigma_data; loss.{loss_type, weight, time_sampler, label_dropout, ...}; sampler.{name, skip_type,
    num_inference_steps, eta, clip_denoised, cfg_scale}. backbone.num_classes = 0 is an unconditional model.

    Raises:
      ValueError: if a field is missing or unknown or holds a name or number that is not allowed; the message says
        what is.

    >>> from configs import ddpm_toy2d
    >>> diffusion = build(ddpm_toy2d.get_config())
    >>> params = jax.eval_shape(diffusion.init, jax.random.key(0))
    >>> samples = jax.eval_shape(lambda p, key: diffusion.sample(p, key, 16), params, jax.random.key(1))
    >>> samples.x0.shape
    (16, 2)
    """
    _check_sections(config)
    shape = tuple(config.data.shape)
    module = _make_backbone(config.backbone)
    num_classes = int(config.backbone.get("num_classes") or 0)
    null_class = config.backbone.get("null_class", True)
    schedule = make_schedule(config.noise_schedule)
    relabel = _make_relabel(config)
    parameterization = make_parameterization(config)
    noisiest = level_at(schedule, config.noise_schedule.noise_steps - 1)
    p, q = parameterization.line(noisiest)
    if not abs(noisiest.alpha * q - noisiest.sigma * p) > 0:
        raise ValueError(
            f"parameterization {config.parameterization!r} says nothing about x0 at pure noise, where "
            "noise_schedule.zero_terminal_snr ends: set config.parameterization to 'v' or 'x0'"
        )
    variance = _choose("variance", config.variance, VARIANCES)
    check_eta(config.sampler.eta)
    error = _choose("loss.loss_type", config.loss.loss_type, LOSS_TYPES)
    weight = _choose("loss.weight", config.loss.weight, WEIGHTS)(config)
    draw_time = _choose("loss.time_sampler", config.loss.time_sampler, TIME_SAMPLERS)(config)
    make_grid = _choose("sampler.skip_type", config.sampler.skip_type, GRIDS)
    make_solver = _choose("sampler.name", config.sampler.name, SOLVERS)
    label_dropout = _fraction("loss.label_dropout", config.loss.label_dropout)
    if num_classes and label_dropout and not null_class:
        raise ValueError(
            "config.backbone.null_class is False: the network cannot do without a label. Set loss.label_dropout to 0, "
            f"or null_class to True; got label_dropout = {label_dropout}"
        )
    if config.sampler.cfg_scale != 1 and not (num_classes and label_dropout):
        raise ValueError(
            f"config.sampler.cfg_scale is {config.sampler.cfg_scale}, but guidance needs a class-conditional model "
            "that learned to do without its label: set backbone.num_classes and loss.label_dropout, or cfg_scale to 1"
        )
    process = tabulated(schedule) if schedule.alphas_cumprod[-1] > 0 else None
    if process is not None:
        level_of = process.level
        process = process._replace(level=lambda t: relabel(level_of(t)))

    def plan_solver(num_steps: int, eta: Any) -> Solver:
        return make_solver(Plan(relabel(make_grid(schedule, num_steps)), process, eta, variance))

    plan_solver(config.sampler.num_inference_steps, config.sampler.eta)  # fail now

    some_label = np.zeros((1,), np.int32) if num_classes else None
    _check_fit(module, some_label, shape, config.backbone.name)

    def init(key: jax.Array) -> Any:
        return module.init(key, jnp.zeros((1, *shape)), jnp.ones((1,)), some_label)["params"]

    def apply(
        params: Any, x: jax.Array, t: Any, cond: Any = None, *, key: jax.Array | None = None, train: bool = False
    ) -> jax.Array:
        if key is None and train and config.backbone.get("dropout", 0.0):
            raise ValueError("apply with train=True draws dropout masks: pass key")
        rngs = {} if key is None else {"dropout": key}
        out = module.apply({"params": params}, x, t, cond, train=train, rngs=rngs)
        assert isinstance(out, jax.Array)  # and no (out, mutated variables): none are mutable
        return out

    def loss(params: Any, key: jax.Array, batch: Mapping[str, jax.Array]) -> tuple[jax.Array, dict[str, jax.Array]]:
        x0 = _check_images(batch, shape)
        time_key, noise_key, label_key, dropout_key = _random.split(key, 4)
        if _random.is_batched(dropout_key):
            dropout_key = dropout_key[0]
        u = draw_time(time_key, x0.shape[0])
        level = relabel(level_at(schedule, jnp.floor(u * config.noise_schedule.noise_steps).astype(jnp.int32)))
        eps = _random.normal(noise_key, x0)
        x = add_noise(x0, eps, level)

        cond = None
        if num_classes:
            cond = _check_labels(batch.get("label"), num_classes, x0.shape[0], allow_null=False)
            drop = _random.draw(jax.random.uniform, label_key, cond.shape, jnp.float32) < label_dropout
            cond = jnp.where(drop, num_classes, cond)
        out = network_output(apply, params, parameterization, x, level, cond, key=dropout_key, train=True)
        per_example = losses.denoising_loss(out, x0, eps, level, parameterization, error=error, weight=weight)
        unweighted = losses.denoising_loss(out, x0, eps, level, parameterization)
        return per_example, {"mse": unweighted}

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
    ) -> Samples:
        if num_samples != int(num_samples) or num_samples < 1:
            raise ValueError(f"num_samples must be an integer of at least 1; got {num_samples}")
        if eta is not None and config.sampler.name != "ddim":
            raise ValueError(f"sampler {config.sampler.name!r} has no eta: set config.sampler.name to 'ddim'")
        steps = config.sampler.num_inference_steps if num_inference_steps is None else num_inference_steps
        scale = config.sampler.cfg_scale if guidance_scale is None else guidance_scale
        solver = plan_solver(steps, config.sampler.eta if eta is None else eta)

        transforms = []
        denoise = make_denoiser(apply, params, parameterization)
        if cond is not None:
            if not num_classes:
                raise ValueError("cond was given, but this model is unconditional: set config.backbone.num_classes")
            cond = jnp.broadcast_to(_check_labels(cond, num_classes, num_samples, allow_null=True), (num_samples,))
            transforms.append(classifier_free(scale, null_cond=num_classes))
        elif guidance_scale is not None:
            raise ValueError("guidance_scale was given without cond: pass the class labels as cond")
        if guidance_scale is not None and not label_dropout and not np.all(concrete(guidance_scale) == 1):
            raise ValueError("this model was trained with loss.label_dropout = 0: it has no prediction without a label")
        transforms.append(lambda denoise: bind(denoise, cond))
        if config.sampler.clip_denoised:
            transforms.append(clip_x0())

        start_key, noise_key = _random.split(key, 2)
        x = _random.draw(jax.random.normal, start_key, (num_samples, *shape), jnp.result_type(float))
        return sample(noise_key, chain(*transforms)(denoise), solver, x, emit=emit)

    return Diffusion(init, apply, loss, sample_fn)


def make_schedule(config: ConfigDict) -> NoiseSchedule:
    """Returns the table that config.noise_schedule describes.

    Raises:
      ValueError: if its name or numbers are not allowed.

    >>> section = ConfigDict({"beta_schedule": "linear", "noise_steps": 1000, "beta_start": 1e-4, "beta_end": 0.02})
    >>> float(make_schedule(ConfigDict({**section, "zero_terminal_snr": False})).betas[-1])
    0.02
    """
    make_betas = _choose("noise_schedule.beta_schedule", config.beta_schedule, NOISE_SCHEDULES)
    betas = make_betas(config.noise_steps, config.beta_start, config.beta_end)
    return noise_schedules.make_noise_schedule(
        noise_schedules.zero_terminal_snr(betas) if config.zero_terminal_snr else betas
    )


def make_parameterization(config: ConfigDict) -> parameterizations.Parameterization:
    """Returns the parameterization that config.parameterization names.

    Raises:
      ValueError: if there is none of that name.

    >>> make_parameterization(ConfigDict({"parameterization": "v"})).name
    'v'
    """
    return _choose("parameterization", config.parameterization, PARAMETERIZATIONS)(config)


def backbone_fields(name: str) -> list[fields.Field]:
    """Returns what config.backbone may hold beside `name`: the fields of a backbone's module that are plain data.

    Raises:
      ValueError: if there is no such backbone.

    >>> [field.name for field in backbone_fields("mlp")][:2]
    ['width', 'depth']
    """
    plain = fields.plain_fields(_choose("backbone.name", name, BACKBONES))
    if name == "unet2d_condition":
        plain += [field for field in fields.plain_fields(backbones.ClassContext) if field.name == "num_tokens"]
    return plain


def check_backbone_field(name: str, field: str, value: Any) -> None:
    """Raises ValueError unless config.backbone, for the backbone called `name`, may hold this value of a field.

    >>> check_backbone_field("dit", "depth", 12)
    """
    known = {field.name: field for field in backbone_fields(name)}
    if field not in known:
        raise ValueError(f"config.backbone has no field {field} for name = {name!r}; its fields are {', '.join(known)}")
    if field in ("dtype", "param_dtype"):
        _choose(f"backbone.{field}", value, DTYPES)
    elif not fields.fits(value, known[field].type):
        allowed = fields.described(known[field].type)
        raise ValueError(f"config.backbone.{field} must be of type {allowed}; got {value!r}")


def _choose(field: str, name: str, options: Mapping[str, Any]) -> Any:
    if not isinstance(name, str) or name not in options:
        raise ValueError(f"config.{field} must be one of {', '.join(sorted(options))}; got {name!r}")
    return options[name]


def _fraction(field: str, value: float) -> float:
    if not 0 <= value <= 1:
        raise ValueError(f"config.{field} must lie in [0, 1]; got {value}")
    return float(value)


def _check_sections(config: ConfigDict) -> None:
    wanted = {
        "data": ("shape",),
        "backbone": ("name",),
        "noise_schedule": (
            "beta_schedule",
            "noise_steps",
            "beta_start",
            "beta_end",
            "zero_terminal_snr",
            "time_label",
        ),
        "loss": (
            "loss_type",
            "weight",
            "time_sampler",
            "label_dropout",
            "min_snr_gamma",
            "p2_gamma",
            "p2_k",
            "sigmoid_bias",
            "logit_mean",
            "logit_std",
        ),
        "sampler": ("name", "skip_type", "num_inference_steps", "eta", "clip_denoised", "cfg_scale"),
        "parameterization": (),
        "variance": (),
        "sigma_data": (),
    }
    missing = [section for section in wanted if section not in config]
    missing += [
        f"{section}.{field}" for section in wanted if section in config for field in wanted[section]
        if field not in config[section]
    ]  # fmt: skip
    if missing:
        raise ValueError(f"the config lacks {', '.join(missing)}: configs/default.py names every field")


def _make_backbone(config: ConfigDict) -> nn.Module:
    given = {field: value for field, value in config.items() if field != "name"}
    for field, value in given.items():
        check_backbone_field(config.name, field, value)
    for field in ("dtype", "param_dtype"):
        if field in given:
            given[field] = DTYPES[given[field]]
    num_classes = given.get("num_classes") or 0
    if not 0 <= num_classes < 2**31:
        raise ValueError(f"config.backbone.num_classes must be 0 (unconditional) or more; got {num_classes}")
    given["num_classes"] = num_classes or None
    if given.get("learned_variance"):
        raise ValueError(
            "config.backbone.learned_variance: the hybrid loss that trains it is not built in yet; set False"
        )
    given = {field: fields.tupled(value) for field, value in given.items()}
    if config.name == "unet2d_condition":
        own = {field: given.pop(field) for field in ("num_classes", "num_tokens") if field in given}
        return backbones.ClassContext(backbones.UNet2DCondition(**given), **own)
    return BACKBONES[config.name](**given)


def _make_relabel(config: ConfigDict) -> Callable[[Level], Level]:
    """Returns level -> the same level with the label that config.noise_schedule.time_label names."""
    name = config.noise_schedule.time_label
    label = _choose("noise_schedule.time_label", name, TIME_LABELS)
    for field in ("fourier_time", "sigma_labels"):
        if config.backbone.get(field, False) and name != "sigma":
            raise ValueError(
                f"config.backbone.{field}: such a network divides by its label, a sigma: set "
                f"config.noise_schedule.time_label to 'sigma'; got {name!r}"
            )
    if config.backbone.get("time_table") is not None:
        raise ValueError("config.backbone.time_table: labels are floats here, between steps too; set it to None")
    if label is None:
        return lambda level: level
    if config.noise_schedule.zero_terminal_snr:
        raise ValueError(
            f"config.noise_schedule.time_label is {name!r}, which is infinite at pure noise, where zero_terminal_snr "
            "ends: set time_label to 'step'"
        )
    return lambda level: Level(level.alpha, level.sigma, label(level))


def _check_fit(module: nn.Module, cond: Any, shape: tuple[int, ...], name: str) -> None:
    """Raises ValueError unless the network takes data of this shape and returns the same. Nothing is computed."""

    def run(key: jax.Array) -> Any:
        return module.init_with_output(key, jnp.zeros((1, *shape)), jnp.ones((1,)), cond)[0]

    where = f"config.data.shape = {shape} and config.backbone (name = {name!r}) do not fit"
    try:
        out: Any = jax.eval_shape(run, jax.eval_shape(lambda: jax.random.key(0)))
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error
    if out.shape[1:] != shape:
        raise ValueError(f"{where}: the network's output has shape {out.shape[1:]}; see its out_channels")


def _check_images(batch: Mapping[str, jax.Array], shape: tuple[int, ...]) -> jax.Array:
    if "image" not in batch:
        raise ValueError(f"a batch needs the entry 'image'; got {sorted(batch)}")
    image = batch["image"]
    check_data(image=image)
    if image.shape[1:] != shape:
        raise ValueError(
            f"images must have shape [B, {', '.join(map(str, shape))}] (config.data.shape); got {list(image.shape)}"
        )
    values = concrete(image)
    if values is not None and not np.isfinite(values).all():
        raise ValueError("images must be finite; got NaN or infinite values")
    return image


def _check_labels(labels: Any, num_classes: int, batch_size: int, *, allow_null: bool) -> jax.Array:
    if labels is None:
        raise ValueError("this model is class-conditional (config.backbone.num_classes): the batch needs 'label'")
    labels = jnp.asarray(labels)
    if not jnp.issubdtype(labels.dtype, jnp.integer) or labels.shape not in ((), (batch_size,)):
        raise ValueError(f"labels must be integers of shape [] or [{batch_size}]; got {labels.dtype} {labels.shape}")
    values = concrete(labels)
    if values is not None and values.size and (values.min() < 0 or values.max() >= num_classes + allow_null):
        null = f" or be {num_classes} for no class" if allow_null else ""
        raise ValueError(
            f"labels must lie in [0, {num_classes - 1}]{null}; got {values.min()} to {values.max()}: correct them or "
            "config.backbone.num_classes"
        )
    return labels
