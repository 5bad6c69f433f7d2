"""Every field of a config, with its type and its default; experiment files change what they need."""

import math
from collections.abc import Mapping
from types import UnionType
from typing import Any, Union, get_origin

from ml_collections import ConfigDict, FieldReference
from ml_collections.config_dict import placeholder

from diffusers_fn.from_config.network import backbone_fields, check_backbone_field


def default_config() -> ConfigDict:
    """Returns a config with all fields that `build` and the experiments read, locked and typed."""
    config = ConfigDict()
    config.seed = 0
    config.prng_impl = "threefry2x32"  # of random keys, or rbg, unsafe_rbg: batch size and devices then change samples

    config.data = ConfigDict()
    config.data.name = "digits"  # digits, idx, images, arrays or toy2d
    config.data.path = ""  # a folder or file, for idx, images and arrays
    config.data.shape = (8, 8, 1)  # of one example, values in [-1, 1]
    config.data.num_classes = 10  # 0 where the data have no labels
    config.data.heldout_fraction = 0.2  # kept from training, for evaluation (idx: the test files)
    config.data.pairs = ""  # a file of experiments.reflow, trained on instead of the data
    config.data.coupling = "none"  # of data and noise in a batch; ot: optimal transport, for flows
    config.data.flip = False  # mirror images at random
    config.data.image_size = 0  # images: crop and resize to this; 0 demands equal sizes
    config.data.variant = "moons"  # toy2d: which point cloud
    config.data.num_examples = 10_000  # toy2d: how many points
    config.data.images_key = "images"  # arrays: entry of an .npz file
    config.data.labels_key = "labels"
    config.data.normalize = True  # arrays: False takes floats as they are, such as latents

    config.backbone = default_backbone("mlp")

    config.task = "diffusion"  # what experiments.train trains: or classifier, autoencoder

    config.latent = ConfigDict()
    config.latent.enabled = False  # diffuse in the latents of an autoencoder
    config.latent.autoencoder_workdir = ""  # the run that trained it; needed for training only
    config.latent.cache = ""  # a file of experiments.encode, trained on instead of the images
    config.latent.decode_batch_size = 0  # samples that are decoded at once; 0: all of a batch

    config.noise_schedule = ConfigDict()
    config.noise_schedule.process = "table"  # of betas, or continuous: vp, sub_vp, ve, cosine, trigonometric, flow, edm
    config.noise_schedule.beta_schedule = "linear"
    config.noise_schedule.noise_steps = 1000
    config.noise_schedule.beta_start = 1e-4
    config.noise_schedule.beta_end = 0.02
    config.noise_schedule.zero_terminal_snr = False
    config.noise_schedule.time_label = "step"  # what the network is told: step, log_sigma (EDM's c_noise) or sigma
    config.noise_schedule.beta_min = 0.1  # vp, sub_vp
    config.noise_schedule.beta_max = 20.0
    config.noise_schedule.sigma_min = placeholder(float)  # ve, edm; None: the process' own, 0.01 and 0.002
    config.noise_schedule.sigma_max = placeholder(float)  # 50 and 80
    config.noise_schedule.shift = 1.0  # of log SNR, for larger images: see processes.shifted
    config.noise_schedule.t_min = placeholder(float)  # the ends of training and sampling; None: the process' own
    config.noise_schedule.t_max = placeholder(float)

    config.parameterization = "epsilon"
    config.variance = "fixed_small"
    config.sigma_data = 0.5  # parameterization and weight "edm", and scale_input
    config.scale_input = False  # the network sees x over its standard deviation ("edm" does so anyway)
    config.score_scaling = 1.0  # parameterization "score": the score is this times the output
    config.self_conditioning = 0.0  # bound of the last estimate of x0, which the network sees (1 for images); 0: none

    config.loss = ConfigDict()
    config.loss.objective = "denoising"  # hybrid, vlb: see OBJECTIVES in diffusers_fn/from_config/objectives.py
    config.loss.loss_type = "mse"
    config.loss.weight = "simple"
    config.loss.time_sampler = "uniform"
    config.loss.label_dropout = 0.1  # share of examples trained without their label
    config.loss.offset_noise = 0.0  # strength of a common shift of each channel's noise
    config.loss.kl_weight = 1e-6  # task autoencoder
    config.loss.vlb_weight = 1e-3  # hybrid: of the variational bound beside the plain loss
    config.loss.num_levels = 256  # hybrid, vlb: grey levels of the data, which the bound's last term tells apart
    config.loss.min_snr_gamma = 5.0
    config.loss.p2_gamma = 1.0
    config.loss.p2_k = 1.0
    config.loss.sigmoid_bias = 0.0
    config.loss.logit_mean = 0.0
    config.loss.logit_std = 1.0
    config.loss.log_sigma_mean = -1.2  # time_sampler log_normal: of log(sigma / alpha)
    config.loss.log_sigma_std = 1.2
    config.loss.tangent_scale = placeholder(float)  # consistency: c of the normalised tangent; None: as it is
    config.loss.two_times_share = 0.5  # mean_flow: of examples whose two times differ
    config.loss.adaptive_power = 0.0  # mean_flow: 1 lets every example pull alike
    config.loss.guidance_scale = 1.0  # mean_flow: the guidance that the network learns
    config.loss.mode_scale = 1.29  # time_sampler mode

    config.sampler = ConfigDict()
    config.sampler.name = "ddim"  # ancestral, euler, heun, dpmpp_2m, unipc, ...: see SOLVERS in from_config/samplers.py
    config.sampler.skip_type = "trailing"
    config.sampler.num_inference_steps = 50
    config.sampler.eta = 0.0
    config.sampler.clip_denoised = True
    config.sampler.cfg_scale = 1.0  # classifier-free guidance; 1 is none, of classifier_free_pp 0
    config.sampler.guidance = "classifier_free"  # or classifier_free_pp, projected: how cfg_scale acts
    config.sampler.apg_eta = 0.0  # projected: how much of the parallel part is kept
    config.sampler.apg_norm_threshold = placeholder(float)  # None: none
    config.sampler.cfg_batched = (
        True  # both predictions in a batch of twice the size; False: in two passes, with less memory
    )
    config.sampler.cfg_channels = 0  # guide the first so many channels; 0: all
    config.sampler.cfg_rescale = 0.0  # share of the conditional prediction's spread that is restored
    config.sampler.cfg_interval = (0.0, math.inf)  # of sigma / alpha, where to guide
    config.sampler.classifier_workdir = ""  # the run of a classifier that guides; "" is none
    config.sampler.classifier_scale = 1.0
    config.sampler.snr = 0.16  # predictor_corrector
    config.sampler.num_corrector_steps = 1
    config.sampler.s_churn = 0.0  # edm_stochastic
    config.sampler.s_min = 0.0
    config.sampler.s_max = math.inf
    config.sampler.s_noise = 1.0

    config.training = ConfigDict()
    config.training.num_steps = 10_000
    config.training.steps_per_call = 1  # steps in one compiled scan; num_steps and the *_every are multiples of it
    config.training.batch_size = 128
    config.training.optimizer = "adam"  # adam or adamw
    config.training.learning_rate = 1e-3
    config.training.lr_schedule = "cosine"  # constant or cosine, after the warm-up
    config.training.warmup_steps = 200
    config.training.weight_decay = 0.0  # adamw
    config.training.grad_clip = 1.0  # global norm; 0 for none
    config.training.accumulation = 1  # batches a parameter update
    config.training.ema_decay = 0.999
    config.training.log_every = 100
    config.training.sample_every = 2_000
    config.training.checkpoint_every = 1_000
    config.training.keep_checkpoints = 3

    config.evaluation = ConfigDict()
    config.evaluation.num_samples = 2_000
    config.evaluation.batch_size = 500
    return config.lock()


def default_backbone(name: str) -> ConfigDict:
    """Returns `name` and all fields of that backbone's module with their defaults.

    num_classes = 0 is an unconditional model. dtype is that of the computation, param_dtype that of the parameters,
    by name. Functions (the attention's implementation) are no config fields. A field of several types, such as a
    number or a sequence of them, takes any value here, and `build` checks it.

    Raises:
      ValueError: if there is no such backbone.
    """
    section = ConfigDict({"name": name})
    for field in backbone_fields(name):
        if field.name in ("dtype", "param_dtype"):
            section[field.name] = "float32"
        elif field.name == "num_classes":
            section[field.name] = 0
        elif get_origin(field.type) in (Union, UnionType):
            section[field.name] = FieldReference(field.default, field_type=object)
        else:
            section[field.name] = field.default
    return section


def customise(config: ConfigDict, **sections: Any) -> ConfigDict:
    """Returns the config with sections replaced field by field; a backbone with a `name` starts from its defaults.

    Raises:
      ValueError: if a field does not exist or a value's type is not the default's.
    """
    for name, value in sections.items():
        if name == "backbone" and "name" in value:
            with config.unlocked():
                config.backbone = default_backbone(value["name"]).lock()
        if isinstance(value, dict):
            for field, entry in value.items():
                _set(config[name], name, field, entry)
        else:
            _set(config, "", name, value)
    return config


def pick(variants: Mapping[str, Any], arg: str | None, default: str) -> dict[str, Any]:
    """Returns the changes of the variant called `arg` (the default's for None or "").

    Raises:
      ValueError: if there is no such variant; the message lists them.
    """
    name = arg or default
    if name not in variants:
        raise ValueError(
            f"unknown variant {name!r}: after the colon of --config=FILE.py: comes one of {', '.join(variants)}"
        )
    return variants[name]


def _set(config: ConfigDict, section: str, field: str, value: Any) -> None:
    if field not in config:
        raise ValueError(f"config{'.' + section if section else ''} has no field {field!r}; it has {', '.join(config)}")
    if section == "backbone" and field != "name":
        check_backbone_field(config.name, field, value)
    try:
        config[field] = value
    except TypeError as error:
        raise ValueError(f"config.{section + '.' if section else ''}{field}: {error}") from error
