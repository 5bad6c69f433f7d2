"""Every field of a config: name, type, default and meaning. The only list; experiments change what they need.

One function per section. A field's type is that of its default; `placeholder(float)` is a float or None.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import UnionType
from typing import Any, Union, get_origin

from ml_collections import ConfigDict, FieldReference
from ml_collections.config_dict import placeholder

from diffusers_fn.from_config.network import NETWORKS, BackboneEntry, backbone_fields, check_backbone_field
from diffusers_fn.from_config.signatures import Config

__all__ = ["check_complete", "customise", "default_backbone", "default_config", "pick"]


def default_config() -> Config:
    """Returns a config with every field at its default, locked and typed.

    `build` reads these sections and fields:

    - `data.shape`: of one example;
    - `backbone`: the network, its `name` and the fields of its module (see `default_backbone`);
    - `noise_schedule`: table of betas or continuous process, time label;
    - `parameterization`, `variance`, `sigma_data`, `scale_input`, `score_scaling`, `self_conditioning`: what the
      network takes and predicts;
    - `text`: whether and how texts are conditions;
    - `loss`: objective, error, weight, distribution of the training times, label dropout;
    - `sampler`: solver, grid, number of steps, guidance.

    The binaries in experiments/ also read:

    - `seed`, `prng_impl`: random numbers;
    - `task`: what is trained: diffusion, classifier or autoencoder;
    - `data`: data set, classes, held-out share;
    - `latent`: diffusion in the latents of a trained autoencoder;
    - `training`: steps, batch size, optimizer, EMA, checkpoints;
    - `mesh`: how many devices share data, parameters and layers;
    - `evaluation`: number of samples to score.

    The file of this function, `diffusers_fn/from_config/defaults.py`, explains each field in one line:

        from diffusers_fn.from_config import defaults; print(open(defaults.__file__).read())

    `customise` changes fields, and so does assignment.

    >>> config = default_config()
    >>> config.sampler.name, config.sampler.num_inference_steps
    ('ddim', 50)
    """
    config = ConfigDict()
    config.seed = 0
    config.prng_impl = "threefry2x32"  # of keys; or rbg, unsafe_rbg, whose samples depend on batch size and devices
    config.task = "diffusion"  # what experiments.train trains; or classifier, autoencoder
    config.data = _data()
    config.latent = _latent()
    config.training = _training()
    config.mesh = _mesh()
    config.evaluation = _evaluation()
    for name, value in _model().items():
        config[name] = value
    return config.lock()


def _data() -> ConfigDict:
    data = ConfigDict()
    data.name = "digits"  # or toy2d, idx, arrays, images, array_record, tfds, hf, tar, or "module:function" of your own
    data.path = ""  # a folder or file, for all kinds but digits and toy2d
    data.shape = (8, 8, 1)  # of one example; values lie in [-1, 1]
    data.num_classes = placeholder(int)  # of the labels, for the network too; 0: labels are not used
    data.heldout_fraction = 0.2  # share of the examples held out for evaluation (idx: the test files)
    data.split = "train"  # tfds, hf: the split of the data set that is trained on
    data.heldout_split = ""  # tfds, hf: the split that is held out, such as "test"; "": a share of data.split
    data.pairs = ""  # a file of experiments.reflow: train on its pairs instead of the data
    data.coupling = "none"  # of data and noise within a batch; ot: optimal transport, for flows
    data.flip = False  # mirror images at random
    data.image_size = 0  # image files: height and width after `resize`; 0: those of data.shape
    data.resize = "none"  # image files of another size: none (refused), crop, pad, stretch, adm_crop or adm_random_crop
    data.background = (
        255,
        255,
        255,
    )  # image files: colour behind transparent pixels; with four channels they stay RGBA
    data.memory_limit_mb = 1024  # images of a split that need more are read on demand, others held in memory
    data.num_threads = placeholder(int)  # threads that read batches in advance; None: by kind of data and cores
    data.num_workers = 0  # processes that read batches in advance, each with these threads; 0: threads alone
    data.variant = "moons"  # toy2d: name of the point cloud
    data.num_examples = 10_000  # toy2d: number of points
    data.images_key = "images"  # arrays, records, tables: entry of the .npz file, feature or column with the examples
    data.labels_key = "labels"  # arrays, records, tables: entry with the labels
    data.value_range = placeholder(tuple)  # arrays: smallest and largest value as stored, which become -1 and 1
    data.normalize = True  # values lie in [-1, 1]; False: in any range; arrays are read unchanged
    return data


def _latent() -> ConfigDict:
    latent = ConfigDict()
    latent.enabled = False  # train and sample in the latents of an autoencoder
    latent.autoencoder_workdir = ""  # work directory of the autoencoder's run; for training only
    latent.cache = ""  # a folder of experiments.encode (or a file of earlier ones): train on its latents, not images
    latent.decode_batch_size = 0  # samples decoded at once; 0: the whole batch
    return latent


def _training() -> ConfigDict:
    training = ConfigDict()
    training.num_steps = 10_000
    training.steps_per_call = 1  # training steps per compiled call; num_steps and *_every must be multiples of it
    training.batch_size = 128
    training.optimizer = "adam"  # adam or adamw
    training.learning_rate = 1e-3
    training.lr_schedule = "cosine"  # constant or cosine, after the warm-up
    training.warmup_steps = 200
    training.weight_decay = 0.0  # adamw
    training.grad_clip = 1.0  # largest global norm of the gradient; 0: no clipping
    training.accumulation = 1  # batches per parameter update
    training.ema_decay = 0.999  # largest decay of the averaged parameters, which samples are drawn with
    training.ema_warmup = "ratio"  # how the decay grows: ratio, power or none, see training.averages
    training.ema_stds = ()  # relative lengths of further averages (EDM2), such as (0.05, 0.1)
    training.ema_snapshot_every = 0  # steps between the stored averages for other lengths after the run; 0: none
    training.max_skipped = 10  # steps in a row without finite numbers, after which the last checkpoint is restored
    training.log_every = 100  # steps
    training.sample_every = 2_000  # steps; 0: never
    training.heldout_every = 1_000  # steps between losses on held-out data; 0: never
    training.checkpoint_every = 1_000  # steps
    training.keep_checkpoints = 3  # number of checkpoints kept on disk
    training.keep_every = 0  # steps; their checkpoints are kept for ever; 0: none
    training.peak_flops = 0.0  # FLOP/s of one device, for the metric flops_utilization; 0: of known GPUs and TPUs
    return training


def _mesh() -> ConfigDict:
    mesh = ConfigDict()
    mesh.data = -1  # devices that split batches alone; -1: what fsdp and tensor leave of all devices
    mesh.fsdp = 1  # devices that split batches, and parameters, optimizer state and averages
    mesh.tensor = 1  # devices that split each layer: attention heads, hidden units, channels
    return mesh


def _evaluation() -> ConfigDict:
    evaluation = ConfigDict()
    evaluation.num_samples = 2_000
    evaluation.batch_size = 500
    return evaluation


def _model() -> ConfigDict:
    """The sections and fields that `build` reads; beside them it reads data.shape."""
    model = ConfigDict()
    model.backbone = default_backbone("mlp")
    model.noise_schedule = _noise_schedule()
    model.parameterization = "epsilon"  # what the network predicts: epsilon, x0, v, score, velocity or edm
    model.variance = "fixed_small"  # of a reverse step; fixed_small, fixed_large, learned or learned_range
    model.sigma_data = 0.5  # standard deviation of the data; for parameterization and weight edm, and scale_input
    model.scale_input = False  # divide the network's input by its standard deviation (edm always does)
    model.score_scaling = 1.0  # parameterization score: the score is the network's output times this
    model.self_conditioning = 0.0  # largest |x0| of the previous estimate, an input of the network; 0: off; inf: any
    model.text = _text()
    model.loss = _loss()
    model.sampler = _sampler()
    return model


def _noise_schedule() -> ConfigDict:
    noise_schedule = ConfigDict()
    noise_schedule.process = "table"  # of betas; or continuous: vp, sub_vp, ve, cosine, trigonometric, flow, edm
    noise_schedule.beta_schedule = "linear"  # table: linear, scaled_linear, quadratic, sqrt, sigmoid or cosine
    noise_schedule.noise_steps = 1000  # table: number of timesteps; others: time labels are t times this
    noise_schedule.beta_start = 1e-4  # table
    noise_schedule.beta_end = 0.02  # table
    noise_schedule.zero_terminal_snr = False  # table: rescale the betas so that the last timestep is pure noise
    noise_schedule.time_label = "step"  # time passed to the network: step, log_sigma (EDM's c_noise) or sigma
    noise_schedule.beta_min = 0.1  # vp, sub_vp
    noise_schedule.beta_max = 20.0  # vp, sub_vp
    noise_schedule.sigma_min = placeholder(float)  # ve, edm; None: the process's own, 0.01 and 0.002
    noise_schedule.sigma_max = placeholder(float)  # ve, edm; None: the process's own, 50 and 80
    noise_schedule.shift = 1.0  # continuous: shift of log SNR for larger images, see processes.shifted; 1: none
    noise_schedule.t_min = placeholder(float)  # continuous: first time of training and sampling; None: the process's
    noise_schedule.t_max = placeholder(float)  # continuous: last time; None: the process's
    return noise_schedule


def _text() -> ConfigDict:
    text = ConfigDict()
    text.kind = "none"  # captions as conditions: none; words, bytes: token ids; table, encoder: published token vectors
    text.path = ""  # table: folder with tokenizer.json and one .safetensors table; encoder: of a text encoder
    text.num_tokens = 16  # tokens of a caption; longer ones are cut
    text.vocab_size = 1024  # words: ids; the most frequent words of the training captions, padding and "unknown"
    text.vector_dim = 256  # table, encoder: features of a token
    text.depth = 2  # blocks of the transformer that is trained on the tokens, see backbones.TextContext
    text.num_heads = 4  # of its attentions; they divide backbone.context_dim
    text.missing = "refuse"  # examples without a caption: refuse, or empty, which stands for no condition
    return text


def _loss() -> ConfigDict:
    loss = ConfigDict()
    loss.objective = "denoising"  # denoising, hybrid, vlb, consistency or mean_flow: see from_config/objectives.py
    loss.loss_type = "mse"  # mse, l1 or huber
    loss.weight = "simple"  # simple, uniform, snr, min_snr, truncated_snr, p2, edm, sigmoid or likelihood
    loss.time_sampler = "uniform"  # distribution of noise levels in training: see from_config/time_samplers.py
    loss.label_dropout = 0.1  # share of the examples whose label or caption is replaced by "none"
    loss.offset_noise = 0.0  # standard deviation of the noise added to each channel as a whole
    loss.kl_weight = 1e-6  # task autoencoder: of the KL divergence
    loss.vlb_weight = 1e-3  # hybrid: of the variational bound
    loss.num_levels = 256  # hybrid, vlb: grey levels of the data, for the bound's last term; unused without normalize
    loss.min_snr_gamma = 5.0  # weight min_snr
    loss.p2_gamma = 1.0  # weight p2
    loss.p2_k = 1.0  # weight p2
    loss.sigmoid_bias = 0.0  # weight sigmoid
    loss.logit_mean = 0.0  # time_sampler logit_normal
    loss.logit_std = 1.0  # time_sampler logit_normal
    loss.log_sigma_mean = -1.2  # time_sampler log_normal: of log(sigma / alpha)
    loss.log_sigma_std = 1.2  # time_sampler log_normal
    loss.tangent_scale = placeholder(float)  # consistency: c of the normalised tangent; None: not normalised
    loss.two_times_share = 0.5  # mean_flow: share of the examples with two different times
    loss.adaptive_power = 0.0  # mean_flow: exponent of the adaptive weight; 1 gives all examples equal gradients
    loss.guidance_scale = 1.0  # mean_flow: guidance scale that the network learns
    loss.mode_scale = 1.29  # time_sampler mode
    return loss


def _sampler() -> ConfigDict:
    sampler = ConfigDict()
    sampler.name = "ddim"  # the solver, see SOLVERS in from_config/samplers.py: ddim, ancestral, heun, dpmpp_2m, ...
    sampler.skip_type = "trailing"  # the grid of noise levels, see from_config/noise.py: trailing, log_snr, karras, ...
    sampler.num_inference_steps = 50
    sampler.eta = 0.0  # ddim: share of DDPM's noise, in [0, 1]
    sampler.clip_denoised = True  # clip estimates of x0 to [-1, 1]; without effect if data.normalize is False
    sampler.cfg_scale = 1.0  # guidance scale; 1: no guidance (classifier_free_pp: 0)
    sampler.guidance = "classifier_free"  # how cfg_scale is applied: classifier_free, classifier_free_pp or projected
    sampler.apg_eta = 0.0  # projected: share of the update's parallel component that is kept
    sampler.apg_norm_threshold = placeholder(float)  # projected: largest norm of the update; None: no limit
    sampler.cfg_batched = True  # True: one batch of 2B; False: two forward passes, at half the peak memory
    sampler.cfg_channels = 0  # guide the first `cfg_channels` channels; 0: all
    sampler.cfg_rescale = 0.0  # classifier_free: share of the conditional prediction's standard deviation to restore
    sampler.cfg_interval = (0.0, math.inf)  # of sigma / alpha, in which guidance is applied
    sampler.classifier_workdir = ""  # work directory of a classifier for classifier guidance; "": none
    sampler.classifier_scale = 1.0  # guidance scale of the classifier
    sampler.snr = 0.16  # predictor_corrector: signal-to-noise ratio of a Langevin step
    sampler.num_corrector_steps = 1  # predictor_corrector: Langevin steps per step
    sampler.s_churn = 0.0  # heun_churn
    sampler.s_min = 0.0  # heun_churn
    sampler.s_max = math.inf  # heun_churn
    sampler.s_noise = 1.0  # heun_churn
    return sampler


def default_backbone(name: str, networks: Mapping[str, BackboneEntry] = NETWORKS) -> ConfigDict:
    """Returns the section `backbone` for a network: its name, and the fields of its module at their defaults.

    num_classes and image_size are None, which is those of config.data; num_classes = 0 is an unconditional model. dtype
    is that of the computation, param_dtype that of the parameters, both by name. Fields that are functions, such as
    attention_fn, are left out. A field of several types, such as a number or a sequence of numbers, takes any value
    here; `build` checks it.

    Raises:
      ValueError: if there is no such backbone.

    >>> default_backbone("mlp").depth
    4
    """
    section = ConfigDict({"name": name})
    for field in backbone_fields(name, networks):
        if field.name in ("dtype", "param_dtype"):
            section[field.name] = "float32"
        elif field.name == "num_classes":
            section[field.name] = placeholder(int)
        elif field.name == "image_size":  # an int, or (H, W)
            section[field.name] = FieldReference(None, field_type=object)
        elif get_origin(field.type) in (Union, UnionType):
            section[field.name] = FieldReference(field.default, field_type=object)
        else:
            section[field.name] = field.default
    return section


def check_complete(config: ConfigDict) -> None:
    """Raises ValueError, naming what is missing, unless the config has every section and field that `build` reads.

    Of the backbone only the name is required: a field that is missing keeps its module's default.

    >>> check_complete(default_config())
    """
    if not isinstance(config, ConfigDict):
        raise ValueError(
            f"a config is a ConfigDict, from dfn.default_config() or a file in configs/; got {type(config).__name__}"
        )
    required: dict[str, tuple[str, ...]] = {"data": ("shape",)}
    for name, value in _model().items():
        required[name] = tuple(value) if isinstance(value, ConfigDict) else ()
    required["backbone"] = ("name",)
    missing = [section for section in required if section not in config]
    missing += [
        f"{section}.{field}"
        for section, fields in required.items()
        for field in fields
        if section in config and field not in config[section]
    ]
    if missing:
        raise ValueError(
            f"the config lacks {', '.join(missing)}: start from dfn.default_config(), which has every field"
        )


def customise(config: Config, **sections: Any) -> Config:
    """Returns the config, changed in place: each section field by field, a field of the top by its value.

    A backbone with a `name` starts from that network's defaults; one named "package.module:name", which is not imported
    here, has the fields given.

    Raises:
      ValueError: if a field does not exist or a value's type is not the default's.

    >>> config = customise(default_config(), backbone={"name": "dit", "depth": 4}, parameterization="v")
    >>> config.backbone.name, config.backbone.depth, config.parameterization
    ('dit', 4, 'v')
    """
    for name, value in sections.items():
        if name == "backbone" and "name" in value:
            with config.unlocked():
                config.backbone = _named_backbone(value).lock()
        if name not in config:
            raise ValueError(f"config has no section or field {name!r}; it has {', '.join(config)}")
        if isinstance(config[name], ConfigDict) and not isinstance(value, Mapping):
            raise ValueError(f"config.{name} is a section: pass a dict of its fields; got {value!r}")
        if isinstance(value, Mapping):
            for field, entry in value.items():
                _set(config[name], name, field, entry)
        else:
            _set(config, "", name, value)
    return config


def pick(variants: Mapping[str, Any], arg: str | None, default: str) -> dict[str, Any]:
    """Returns the changes of the variant called `arg` (of the default for None or "").

    Raises:
      ValueError: if there is no such variant; the message lists them.

    >>> pick({"small": {"seed": 1}, "large": {"seed": 2}}, None, "small")
    {'seed': 1}
    """
    name = arg or default
    if name not in variants:
        raise ValueError(
            f"unknown variant {name!r}: after the colon of --config=FILE.py: comes one of {', '.join(variants)}"
        )
    return variants[name]


def _named_backbone(value: Mapping[str, Any]) -> ConfigDict:
    """The section for customise(config, backbone=value): with every field if the library has the network."""
    if ":" not in value["name"]:
        return default_backbone(value["name"])
    fields = {field: FieldReference(entry, field_type=object) for field, entry in value.items() if field != "name"}
    return ConfigDict({"name": value["name"], "num_classes": placeholder(int), **fields})


def _set(config: ConfigDict, section: str, field: str, value: Any) -> None:
    if field not in config:
        raise ValueError(f"config{'.' + section if section else ''} has no field {field!r}; it has {', '.join(config)}")
    if section == "backbone" and field != "name" and config.name in NETWORKS:
        check_backbone_field(config.name, field, value)
    try:
        config[field] = value
    except TypeError as error:
        raise ValueError(f"config.{section + '.' if section else ''}{field}: {error}") from error
