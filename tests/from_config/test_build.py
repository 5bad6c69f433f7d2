"""From configs to functions: messages, labels, keys, and that every config in configs/ trains."""

import dataclasses
import importlib
import json
import pathlib
import textwrap

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl import flags
from ml_collections import config_flags
from small_models import small_config, some_params

import configs
import diffusers_fn as dfn
from diffusers_fn import training
from diffusers_fn.from_config import derived, tables
from diffusers_fn.from_config.conditions import make_conditions
from diffusers_fn.from_config.defaults import customise, default_backbone, default_config
from diffusers_fn.from_config.module_fields import tupled
from diffusers_fn.from_config.network import BACKBONES, backbone_fields, check_backbone_field
from diffusers_fn.from_config.samplers import SOLVERS
from experiments import data, runs, states


@pytest.fixture(scope="module")
def conditional():
    diffusion = dfn.build(small_config(num_classes=3))
    return diffusion, some_params(diffusion.init)


@pytest.fixture(scope="module")
def batch():
    return {
        "image": jax.random.uniform(jax.random.key(1), (8, 2), minval=-1),
        "label": jnp.array([0, 1, 2, 0, 1, 2, 0, 1]),
    }


# The configs that exist.

FOLDER = pathlib.Path(configs.__file__).parent


def every_config():
    for path in sorted(FOLDER.glob("*.py")):
        module = importlib.import_module(f"configs.{path.stem}")
        if hasattr(module, "get_config"):
            yield from ((path.stem, variant) for variant in module.VARIANTS)


@pytest.mark.parametrize("name", sorted({name for name, _ in every_config()}))
def test_no_variant_is_one_of_the_variants(name):
    module = importlib.import_module(f"configs.{name}")
    variants = [module.get_config(variant).to_dict() for variant in module.VARIANTS]
    assert module.get_config().to_dict() in variants
    assert module.get_config("").to_dict() == module.get_config().to_dict()


# Parameters of the published networks, and what differs here.
LABELS = 1000 + 1  # rows of a class table of ImageNet with a null class
PUBLISHED = {
    ("ddpm_images", "cifar10"): 35_746_307,
    ("ddpm_images", "lsun256"): 113_673_219,
    ("unet2d", "cifar10"): 35_746_307,
    ("unet2d", "lsun256"): 113_673_219,
    # The authors count 256 fixed positions.
    ("dit", "s_2"): 32_963_360 - 256 * 384,
    ("dit", "b_2"): 130_512_416 - 256 * 768,
    ("dit", "l_2"): 458_102_816 - 256 * 1024,
    ("dit", "xl_2"): 675_129_632 - 256 * 1152,
    ("uvit", "cifar10"): 44_255_328,
    ("uvit", "imagenet64"): 130_940_292,  # class table without a null class
    ("uvit", "l_2"): 286_763_172,  # and with one
    ("uvit", "h_2"): 500_832_016,
    # Class tokens, and with XL pooled texts, in tables of their own.
    ("unet2d_condition", "sd1"): 859_520_964 + LABELS * 768,
    ("unet2d_condition", "sd2"): 865_910_724 + LABELS * 1024,
    ("unet2d_condition", "sdxl"): 2_567_463_684 + LABELS * (2048 + 1280),
    ("edm_unets", "ddpmpp"): 55_733_891,
    ("edm_unets", "ncsnpp"): 56_397_827 + 128,  # the frequencies, which are no parameters there
    ("edm_unets", "adm"): 295_899_267,
    # Without the learned variance, half of the last 3x3 convolution.
    ("adm", "imagenet64"): 295_904_454 - (9 * 192 + 1) * 3,
    ("adm", "imagenet128"): 421_529_606 - (9 * 256 + 1) * 3,
    ("adm", "imagenet256"): 553_838_086 - (9 * 256 + 1) * 3,
}


LARGE = {("classifier", "adm_64"), ("autoencoder", "kl_f8"), *(("images", f"gpu{size}") for size in (32, 64, 128))}


def parts_of(config):
    """What a config trains, and its objective; of a model in latents, the one on latents."""
    if config.task == "autoencoder":
        net = dfn.build_autoencoder(config)
        return net, dfn.Objective(net.loss)
    if config.task == "classifier":
        net = dfn.build_classifier(config)
        return net, dfn.Objective(net.loss)
    if config.latent.enabled:
        config.data.shape = (16,)
    return dfn.build(config), dfn.build_objective(config)


def first_variants_quickly():
    """The parameters of a test of every config: the first variants of a few files, and the others in the long set."""
    seen = {"adm", "classifier", "dit", "edm_unets", "sequences", "unet2d", "unet2d_condition", "uvit"}
    for name, variant in every_config():
        yield pytest.param(name, variant, marks=pytest.mark.long if name in seen else ())
        seen.add(name)


@pytest.mark.parametrize(("name", "variant"), list(first_variants_quickly()))
def test_every_config_builds_and_trains(name, variant):
    """Under jax.eval_shape: shapes and types only, so that a large network costs its trace alone."""
    module = importlib.import_module(f"configs.{name}")
    config = module.get_config(variant)
    diffusion, objective = parts_of(config)
    extras = () if objective.extras is None else (objective.extras,)
    optimizer = states.make_optimizer(config)
    shape = tuple(config.data.shape)
    batch = {"image": jax.ShapeDtypeStruct((2, *shape), jnp.float32)}
    if derived.num_classes(config):
        batch["label"] = jax.ShapeDtypeStruct((2,), jnp.int32)
    conditions = make_conditions(config, derived.num_classes(config))
    if conditions is not None and conditions.entry == "text":
        batch["text"] = jax.ShapeDtypeStruct((2, *conditions.null.shape), conditions.null.dtype)
    key = jax.eval_shape(lambda: jax.random.key(0))

    params = jax.eval_shape(diffusion.init, key)
    losses = jax.eval_shape(lambda *given: objective.loss(*given, *extras)[0], params, key, batch)
    assert losses.shape == (2,)
    assert (module.__doc__ or "").count("--config=configs/") >= 1  # the docstring has a launch command
    count = sum(leaf.size for leaf in jax.tree.leaves(params))
    if (name, variant) in PUBLISHED:
        assert count == PUBLISHED[name, variant]
        return
    if (name, variant) in LARGE:
        return
    assert count < 2e7  # a small variant: it takes a step, and samples

    step = training.make_train_step(
        objective.loss, optimizer, ema_decay=config.training.ema_decay, update_extras=objective.update_extras
    )
    take = lambda params, key, batch: step(  # noqa: E731
        training.make_train_state(params, optimizer, objective.extras), key, batch
    )
    state, metrics = jax.eval_shape(take, params, key, batch)
    assert metrics["loss"].shape == ()
    same = jax.tree.map(lambda a, b: (a.shape, a.dtype) == (b.shape, b.dtype), state.params, params)
    assert all(jax.tree.leaves(same))
    if config.task != "diffusion":
        return
    cond = None if conditions is None else np.zeros((2, *conditions.null.shape), np.int32)
    samples = jax.eval_shape(lambda params, key: diffusion.sample(params, key, 2, cond=cond), params, key)
    assert samples.x0.shape == (2, *shape)


def test_the_network_of_a_config_is_traced_once():
    """For the checks of build and build_objective, and for init."""
    calls = []

    def counted(call, args, kwargs, context):
        if context.method_name == "__call__" and not context.module.scope.path:  # the network, none of its layers
            calls.append(context.module)
        return call(*args, **kwargs)

    with nn.intercept_methods(counted):
        model = dfn.build(small_config(backbone={"hidden_size": 11}))
        dfn.build_objective(small_config(backbone={"hidden_size": 11}))
        model.init(jax.random.key(0))
        assert len(calls) == 1
        dfn.build(small_config(backbone={"hidden_size": 13}))
        assert len(calls) == 2


def test_an_unknown_variant_is_refused():
    for name in {name for name, _ in every_config()}:
        with pytest.raises(ValueError, match=r"unknown variant 'nonsense'.*one of"):
            importlib.import_module(f"configs.{name}").get_config("nonsense")


# Names and numbers in a config.


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"backbone": {"name": "cnn"}}, "config.backbone.name must be one of .*mlp.*; got 'cnn'"),
        (
            {"noise_schedule": {"beta_schedule": "cubic"}},
            "config.noise_schedule.beta_schedule must be one of cosine, linear, .*; got 'cubic'",
        ),
        ({"parameterization": "noise"}, "config.parameterization must be one of .*epsilon.*; got 'noise'"),
        ({"variance": "tiny", "sampler": {"name": "ancestral"}}, "config.variance must be one of .*; got 'tiny'"),
        ({"variance": "tiny"}, "config.variance must be one of .*fixed_large, fixed_small.*; got 'tiny'"),
        ({"loss": {"loss_type": "l7"}}, "config.loss.loss_type must be one of huber, l1, mse; got 'l7'"),
        ({"loss": {"weight": "heavy"}}, "config.loss.weight must be one of .*min_snr.*; got 'heavy'"),
        ({"loss": {"time_sampler": "late"}}, "config.loss.time_sampler must be one of .*uniform.*; got 'late'"),
        ({"loss": {"label_dropout": 1.5}}, r"config.loss.label_dropout must lie in \[0, 1\]; got 1.5"),
        ({"sampler": {"name": "magic"}}, "config.sampler.name must be one of .*ddim.*; got 'magic'"),
        ({"sampler": {"skip_type": "hop"}}, "config.sampler.skip_type must be one of .*trailing.*; got 'hop'"),
        ({"sampler": {"eta": 1.5}}, r"eta must lie in \[0, 1\]; got 1.5"),
        ({"sampler": {"num_inference_steps": 1001}}, "the 1000 timesteps of the schedule; got 1001"),
        ({"sampler": {"num_inference_steps": 0}}, "got 0"),
        ({"noise_schedule": {"noise_steps": 0}}, "num_timesteps must be an integer of at least 1; got 0"),
        ({"backbone": {"dtype": "float8"}}, "config.backbone.dtype must be one of bfloat16, float32; got 'float8'"),
        ({"noise_schedule": {"zero_terminal_snr": True}}, "'epsilon' does not determine x0 .*'v', 'x0' or 'velocity'"),
        ({"parameterization": "edm", "sigma_data": -1.0}, "sigma_data must be positive"),
    ],
)
def test_a_bad_config_is_refused_with_what_is_allowed(sections, message):
    with pytest.raises(ValueError, match=message):
        dfn.build(small_config(**sections))


def test_a_field_that_the_backbone_lacks_is_named_with_those_that_it_has():
    config = small_config()
    with config.unlocked():
        config.backbone.hiden_size = 3
    with pytest.raises(ValueError, match=r"has no field hiden_size for name = 'mlp'; its fields are .*hidden_size"):
        dfn.build(config)


def test_a_missing_section_is_named():
    config = small_config()
    with config.unlocked():
        del config.sampler
        del config.loss.weight
    with pytest.raises(ValueError, match=r"the config lacks sampler, loss.weight|lacks loss.weight, sampler"):
        dfn.build(config)


@pytest.mark.parametrize("sections", [{"sampler": {"stepz": 3}}, {"sampler": {"eta": "much"}}, {"loss": {"weight": 3}}])
def test_unknown_fields_and_wrong_types_are_refused(sections):
    with pytest.raises(ValueError, match=r"config\.(sampler|loss)"):
        small_config(**sections)


@pytest.mark.parametrize("parameterization", ["v", "x0"])
def test_zero_terminal_snr_goes_with_v_and_x0(parameterization):
    config = small_config(parameterization=parameterization, noise_schedule={"zero_terminal_snr": True})
    diffusion = dfn.build(config)
    params = some_params(diffusion.init)
    x0 = diffusion.sample(params, jax.random.key(1), 3).x0
    assert np.all(np.isfinite(x0))


# Backbones.


@pytest.mark.parametrize("name", BACKBONES)
def test_every_plain_field_of_a_backbone_can_be_set(name):
    """To its default, to the same with lists for tuples, and from text, as on the command line."""
    section = default_backbone(name)
    module = BACKBONES[name].module
    functions = {"attention_fn", "conv_fn"}
    own = {field.name for field in dataclasses.fields(module)} - {"parent", "name"} - functions
    assert own <= set(section)
    for field in backbone_fields(name):
        value = section[field.name]
        listed = json.loads(json.dumps(value))
        check_backbone_field(name, field.name, listed)
        if field.name in ("num_classes", "image_size"):
            assert value is None
        elif field.name not in ("dtype", "param_dtype"):
            assert value == field.default
            assert tupled(listed) == value
        wrong = {"not": "data"}
        with pytest.raises(ValueError, match=rf"config\.backbone\.{field.name} must be (one )?of "):
            check_backbone_field(name, field.name, wrong)


@pytest.mark.parametrize(
    ("backbone", "message"),
    [
        ({"name": "uvit", "image_size": 8.5}, r"image_size must be of type int or \(int, int\); got 8.5"),
        ({"name": "uvit", "image_size": (8, 8, 8)}, r"image_size must be of type int or \(int, int\); got \(8, 8, 8\)"),
        ({"name": "dit", "depth": True}, "depth must be of type int; got True"),
        ({"name": "dit", "out_channels": "three"}, "out_channels must be of type int or None; got 'three'"),
        (
            {"name": "unet2d", "down_attention": (False, 1)},
            r"down_attention must be of type bool or sequence of bool; got \(False, 1\)",
        ),
        (
            {"name": "unet2d_condition", "transformer_depths": ((1, 2), "x")},
            r"transformer_depths must be of type sequence of \(int or sequence of int\); got \(\(1, 2\), 'x'\)",
        ),
        ({"name": "song_unet", "input_pyramid": 3}, "input_pyramid must be of type str or None; got 3"),
        ({"name": "dit", "patches": 2}, "has no field .?patches.*patch_size"),
    ],
)
def test_a_backbone_field_of_a_wrong_type_is_refused(backbone, message):
    with pytest.raises(ValueError, match=message):
        customise(default_config(), backbone=backbone)


def from_flags(*arguments):
    """The config that a command line makes."""
    values = flags.FlagValues()
    config_flags.DEFINE_config_file("config", flag_values=values, sys_argv=["program", *arguments])
    values(["program", *arguments])
    return values.config


def test_overrides_on_the_command_line_reach_every_type():
    config = from_flags(
        f"--config={FOLDER}/unet2d_condition.py",
        "--config.backbone.channels=16",
        "--config.backbone.channel_multipliers=(1, 2, 2.0)",
        "--config.backbone.transformer_depths=(0, (1, 2), 0)",
        "--config.backbone.num_res_blocks=(1, 2, 1)",
        "--config.backbone.up_transformer_depths=[0, 1, 0]",
        "--config.backbone.only_cross_attention=true",
        "--config.backbone.mid_depth=None",
        "--config.backbone.text_dim=12",
        "--config.backbone.norm_groups=4",
        "--config.backbone.remat",
        "--config.backbone.dropout=0",
        "--config.backbone.num_tokens=3",
        "--config.data.shape=(8, 12, 1)",
    )
    params = jax.eval_shape(dfn.build(config).init, jax.random.key(0))
    assert params["context_table"].shape == (11, 3, 12)
    assert "down_1_transformer_1" in params["net"]
    assert "up_1_transformer_2" in params["net"]
    assert "mid_block_0" not in params["net"]
    assert params["net"]["conv_in"]["kernel"].shape == (3, 3, 1, 16)


def test_a_wrong_type_on_the_command_line_is_refused_by_build():
    config = from_flags(f"--config={FOLDER}/dit.py", "--config.backbone.in_channels=many")
    with pytest.raises(ValueError, match=r"config\.backbone\.in_channels must be of type int or None; got 'many'"):
        dfn.build(config)


IMAGE = {"shape": (8, 8, 1), "num_classes": 0}
TINY_DIT = {"name": "dit", "image_size": 8, "hidden_size": 16, "depth": 1, "num_heads": 2}


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"backbone": {**TINY_DIT, "patch_size": 3}}, r"config.data.shape = \(8, 8, 1\) and .*'dit'.*patch_size"),
        ({"backbone": {"name": "uvit", "image_size": 16}}, r"'uvit'\) do not fit: .*image_size = \(16, 16\)"),
        ({"backbone": {"name": "uvit", "image_size": 8, "text_shape": (7, 5)}}, "cond must be text features"),
        (
            {"backbone": {"name": "unet", "channel_multipliers": (1,) * 5}},
            "image_size must be a multiple of 16 for 5 levels; got 8",
        ),
        (
            {"backbone": {"name": "unet2d", "channel_multipliers": (1,)}},
            "down_attention must be one value or one for each",
        ),
        ({"backbone": {"name": "unet2d", "in_channels": 3}}, r"x must have shape \[B, H, W, 3\]"),
        ({"backbone": {"name": "unet2d", "class_time": True}}, "cond must hold a number"),
        ({"backbone": {"name": "unet2d", "num_timesteps": 1000}}, "config.backbone.num_timesteps: .* set it to None"),
        ({"backbone": {"name": "unet2d", "fourier_time": True}}, "fourier_time: .* 'sigma'; got 'step'"),
        ({"backbone": {"name": "song_unet", "sigma_labels": True}}, "sigma_labels: .* 'sigma'; got 'step'"),
        ({"backbone": {"name": "song_unet", "channels": 6}}, "channels must be a multiple of 4"),
        ({"backbone": {"name": "dhariwal_unet", "channel_multipliers": (1,) * 5}}, "must be (a )?multiples? of 16"),
        ({"backbone": {"name": "unet1d"}}, r"'unet1d'\) do not fit: x must have shape \[B, L, C\]"),
        ({"backbone": {"name": "unet1d"}, "data": {"shape": (18, 2)}}, "L must be a multiple of 4 for 3 levels"),
        (
            {"backbone": {"name": "unet2d_condition"}},
            r"do not fit: x must have shape \[B, H, W, 4\]; got \[1, 8, 8, 1\]",
        ),
        ({"backbone": {"name": "unet2d_condition", "class_time": True}}, "the net's own num_classes, class_time"),
        ({"backbone": {"name": "unet2d_condition", "num_tokens": 0}}, "num_tokens must be at least 1"),
        ({"backbone": {**TINY_DIT, "out_channels": 2}}, r"output has shape \(8, 8, 2\); see its out_channels"),
        ({"backbone": {**TINY_DIT, "learned_variance": True}}, "learned_variance is True, but nothing reads or trains"),
        (
            {"backbone": {**TINY_DIT, "num_classes": -1}, "data": {"num_classes": None}},
            r"num_classes must be 0 \(unconditional\) or more; got -1",
        ),
        (
            {"backbone": {**TINY_DIT, "null_class": False}, "data": {"num_classes": 3}},
            "null_class is False: .* Set loss.label_dropout to 0, or null_class to True; got label_dropout = 0.1",
        ),
        ({"noise_schedule": {"time_label": "clock"}}, "time_label must be one of log_sigma, sigma, step; got 'clock'"),
        (
            {"noise_schedule": {"time_label": "sigma", "zero_terminal_snr": True}, "parameterization": "v"},
            "time_label is 'sigma', which is infinite at pure noise",
        ),
    ],
)
def test_a_backbone_that_does_not_fit_is_refused(sections, message):
    config = customise(default_config(), data=IMAGE)
    with pytest.raises(ValueError, match=message):
        dfn.build(customise(config, **sections))


def test_a_network_without_a_null_class_is_trained_and_sampled_with_labels(batch):
    backbone = {**TINY_DIT, "null_class": False, "zero_init_output": False}
    data = {**IMAGE, "num_classes": 3}
    config = customise(default_config(), data=data, backbone=backbone, loss={"label_dropout": 0.0})
    diffusion = dfn.build(customise(config, sampler={"num_inference_steps": 2}))
    params = some_params(diffusion.init)
    images = {"image": jnp.zeros((8, 8, 8, 1)), "label": batch["label"]}
    assert np.isfinite(jax.jit(diffusion.loss)(params, jax.random.key(0), images)[0]).all()
    assert np.isfinite(diffusion.sample(params, jax.random.key(0), 3, cond=jnp.arange(3)).x0).all()
    with pytest.raises(ValueError, match="it has no prediction without a label"):
        diffusion.sample(params, jax.random.key(0), 3)
    with pytest.raises(ValueError, match="no null class"):
        diffusion.apply(params, images["image"], 0)


# Time labels.


def time_labels(run):
    """The time labels [number of calls, B] of the network while `run()` runs."""
    seen = []

    def record(next_call, args, kwargs, context):
        if isinstance(context.module, dfn.backbones.MLP) and context.method_name == "__call__":
            seen.append(jnp.broadcast_to(args[1], args[0].shape[:1]))
        return next_call(*args, **kwargs)

    with nn.intercept_methods(record):
        run()
    return np.stack(seen)


@pytest.mark.parametrize(("name", "label"), [("log_sigma", lambda s: np.log(s) / 4), ("sigma", lambda s: s)])
def test_the_loss_passes_the_time_label_that_the_config_names(name, label, batch):
    steps, others = (dfn.build(small_config(noise_schedule={"time_label": kind})) for kind in ("step", name))
    params = some_params(steps.init)
    t, passed = (time_labels(lambda d=d: d.loss(params, jax.random.key(3), batch))[0] for d in (steps, others))
    assert len(set(t.tolist())) == 8  # integers, the same draws
    table = dfn.make_noise_schedule(dfn.linear_betas(1000))
    level = dfn.level_at(table, t.astype(int))
    np.testing.assert_allclose(passed, label(level.sigma / level.alpha), rtol=1e-5, atol=1e-6)  # float32


@pytest.mark.parametrize("solver", ["ddim", "dpm2"])  # the second makes levels of its own, between those of the grid
def test_samples_are_drawn_with_the_label_that_the_config_names(solver):
    config = {"noise_schedule": {"time_label": "log_sigma"}, "sampler": {"name": solver, "clip_denoised": False}}
    diffusion = dfn.build(small_config(**config))
    params = some_params(diffusion.init)
    table = dfn.make_noise_schedule(dfn.linear_betas(1000))
    c_noise = lambda level: dfn.Level(level.alpha, level.sigma, np.log(level.sigma / level.alpha) / 4)  # noqa: E731
    levels, process = c_noise(dfn.grids.trailing(table, 4)), dfn.processes.tabulated(table)
    process = process._replace(level=lambda t, level_of=process.level: c_noise(level_of(t)))
    by_hand = dfn.solvers.ddim(levels) if solver == "ddim" else dfn.solvers.dpm2(levels, process=process)
    states = diffusion.sample(params, jax.random.key(1), 3, emit=lambda step: step.x)
    denoise = dfn.make_denoiser(diffusion.apply, params, dfn.parameterizations.epsilon)
    wanted = dfn.sample(jax.random.key(0), denoise, by_hand, states.trace[0])
    np.testing.assert_allclose(states.x0, wanted.x0, rtol=1e-4, atol=1e-5)


def test_the_times_of_edm_have_the_distribution_of_its_docstring():
    config = importlib.import_module("configs.edm_unets").get_config()
    z = np.random.default_rng(0).standard_normal(100_000)
    u = 1 / (1 + np.exp(-(config.loss.logit_mean + config.loss.logit_std * z)))
    level = dfn.level_at(dfn.make_noise_schedule(dfn.linear_betas(1000)), np.floor(1000 * u).astype(int))
    log_sigma = np.log(level.sigma / level.alpha)
    assert abs(log_sigma.mean() + 1.2) < 0.1
    assert abs(log_sigma.std() - 1.2) < 0.1


def test_the_recipe_for_sequences_makes_data_that_fit(tmp_path, monkeypatch):
    module = importlib.import_module("configs.sequences")
    code = "\n".join(
        line for line in module.__doc__.splitlines() if line.startswith("    ") and "python -m" not in line
    )
    monkeypatch.chdir(tmp_path)
    exec(textwrap.dedent(code), {})
    for variant in module.VARIANTS:
        config = customise(module.get_config(variant), data={"path": "waves.npz"})
        train = data.load(runs.data_seed(config), "train")
        runs.check_data_fits(config, train)
        assert train.shape == (32, 1)
        assert np.abs(train.images).max() <= 0.8


# Labels.


def null_row(gradient):
    """The gradient of the class embedding [4, embedding_dim]: its last row is the null class."""
    tables = [leaf for leaf in jax.tree.leaves(gradient) if leaf.ndim == 2 and leaf.shape[0] == 4]
    (table,) = tables
    return np.abs(table[3]).max(), np.abs(table[:3]).max()


@pytest.mark.parametrize(("dropout", "null_trained", "labels_trained"), [(0.5, True, True), (0.0, False, True)])
def test_the_null_label_is_trained_by_label_dropout(dropout, null_trained, labels_trained, batch):
    diffusion = dfn.build(small_config(num_classes=3, loss={"label_dropout": dropout}))
    params = some_params(diffusion.init)
    mean_loss = lambda params: jnp.mean(diffusion.loss(params, jax.random.key(5), batch)[0])  # noqa: E731
    null, labels = null_row(jax.jit(jax.grad(mean_loss))(params))
    assert (null > 0) == null_trained
    assert (labels > 0) == labels_trained


def test_all_labels_dropped_is_the_unconditional_model(batch):
    diffusion = dfn.build(small_config(num_classes=3, loss={"label_dropout": 1.0}))
    params = some_params(diffusion.init)
    loss = jax.jit(diffusion.loss)
    other = {**batch, "label": 2 - batch["label"]}
    np.testing.assert_array_equal(loss(params, jax.random.key(5), batch)[0], loss(params, jax.random.key(5), other)[0])


def test_labels_matter_and_none_is_the_null_label(conditional):
    diffusion, params = conditional
    x, t = jnp.ones((3, 2)), jnp.full(3, 500.0)
    by_label = diffusion.apply(params, x, t, jnp.arange(3))
    assert float(jnp.abs(by_label[0] - by_label[1]).max()) > 1e-3
    null, none = diffusion.apply(params, x, t, jnp.full(3, 3)), diffusion.apply(params, x, t)
    np.testing.assert_allclose(null, none, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("wrong", [np.array([0] * 7 + [4]), np.array([0] * 7 + [-1])])
def test_labels_out_of_range_are_refused(conditional, batch, wrong):
    diffusion, params = conditional
    with pytest.raises(ValueError, match=r"labels must lie in \[0, 2\]"):
        diffusion.loss(params, jax.random.key(0), {**batch, "label": wrong})
    with pytest.raises(ValueError, match=r"labels must lie in \[0, 2\]"):
        diffusion.sample(params, jax.random.key(0), 8, cond=wrong)


@pytest.mark.parametrize("labels", [np.zeros(7, int), np.zeros((8, 1), int), np.zeros(8)])
def test_labels_of_wrong_shape_or_type_are_refused(conditional, batch, labels):
    diffusion, params = conditional
    with pytest.raises(ValueError, match="labels must be integers of shape"):
        diffusion.loss(params, jax.random.key(0), {**batch, "label": labels})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"label": None}, "this model is class-conditional"),
        ({"image": jnp.zeros((8, 2), jnp.uint8)}, "image must be an array of floating type, scaled to"),
        ({"image": jnp.zeros((8, 3))}, r"images must have shape \[B, 2\]"),
    ],
)
def test_bad_batches_are_refused(conditional, batch, change, message):
    diffusion, params = conditional
    with pytest.raises(ValueError, match=message):
        diffusion.loss(params, jax.random.key(0), {**batch, **change})
    with pytest.raises(ValueError, match="a batch needs the entry 'image'"):
        diffusion.loss(params, jax.random.key(0), {"label": batch["label"]})


def test_one_label_stands_for_all(conditional):
    diffusion, params = conditional
    keys = jax.random.split(jax.random.key(2), 3)
    one, each = (diffusion.sample(params, keys, 3, cond=cond).x0 for cond in (1, jnp.array([1, 1, 1])))
    np.testing.assert_array_equal(one, each)


# Loss and samples.


@pytest.mark.parametrize("num_classes", [0, 3])
def test_with_one_key_per_example_the_loss_does_not_depend_on_the_batch(num_classes, batch):
    diffusion = dfn.build(small_config(num_classes=num_classes))
    params = some_params(diffusion.init)
    keys = jax.random.split(jax.random.key(3), 8)
    loss = jax.jit(diffusion.loss)
    together, metrics = loss(params, keys, batch)
    assert together.shape == (8,)
    assert all(value.shape == (8,) for value in metrics.values())
    for i in (0, 5):
        alone, _ = loss(params, keys[i : i + 1], jax.tree.map(lambda a, i=i: a[i : i + 1], batch))
        np.testing.assert_allclose(together[i], alone[0], rtol=1e-5)  # float32 sums of eight products
    assert np.unique(together).size == 8


def test_the_loss_is_that_of_the_network_by_hand(batch):
    """epsilon, mse: for a network that returns 0 the loss is the mean of eps^2, which is 1."""
    diffusion = dfn.build(small_config())
    params = jax.tree.map(jnp.zeros_like, some_params(diffusion.init))
    many = {"image": jnp.zeros((20_000, 2))}
    loss, metrics = jax.jit(diffusion.loss)(params, jax.random.key(0), many)
    # Each is the mean of two squares of normals: variance 1.
    assert abs(float(loss.mean()) - 1) < 4 / np.sqrt(20_000)
    np.testing.assert_array_equal(loss, metrics["mse"])


def test_dropout_needs_a_key_and_acts_in_training_only():
    diffusion = dfn.build(small_config(backbone={"dropout": 0.5}))
    params = some_params(diffusion.init)
    x, t = jnp.ones((2, 2)), jnp.zeros(2)
    plain = diffusion.apply(params, x, t)
    np.testing.assert_array_equal(plain, diffusion.apply(params, x, t, key=jax.random.key(0)))
    trained = [diffusion.apply(params, x, t, key=jax.random.key(seed), train=True) for seed in (0, 1)]
    assert float(jnp.abs(trained[0] - trained[1]).max()) > 1e-4
    assert float(jnp.abs(trained[0] - plain).max()) > 1e-4


def test_samples_with_one_key_per_example_do_not_depend_on_the_batch(conditional):
    diffusion, params = conditional
    keys = jax.random.split(jax.random.key(4), 4)
    cond = jnp.array([0, 2, 1, 0])
    knobs = {"eta": 0.5, "guidance_scale": 2.0}
    together = diffusion.sample(params, keys, 4, cond=cond, **knobs).x0
    part = diffusion.sample(params, keys[1:3], 2, cond=cond[1:3], **knobs).x0
    np.testing.assert_allclose(together[1:3], part, rtol=1e-4, atol=1e-5)  # matmuls of other sizes, four steps
    assert float(jnp.abs(together).max()) <= 1.0  # clip_denoised


def test_guidance_scales_zero_and_one(conditional):
    diffusion, params = conditional
    key, cond = jax.random.key(6), jnp.array([0, 2, 1])
    sample = lambda **knobs: diffusion.sample(params, key, 3, **knobs).x0  # noqa: E731
    # Other batch sizes, other matmul blocks: rounding, which four steps keep below 1e-5.
    np.testing.assert_allclose(sample(cond=cond, guidance_scale=0.0), sample(), rtol=1e-4, atol=1e-5)
    traced = jax.jit(lambda scale: sample(cond=cond, guidance_scale=scale))
    np.testing.assert_allclose(traced(1.0), sample(cond=cond), rtol=1e-4, atol=1e-5)
    assert float(jnp.abs(traced(3.0) - traced(1.0)).max()) > 1e-4
    assert traced._cache_size() == 1


def test_sample_is_the_library_put_together():
    """`Diffusion.sample` against the same solver, grid, denoiser and start written out."""
    diffusion = dfn.build(small_config(parameterization="v", sampler={"clip_denoised": False, "eta": 0.3}))
    params = some_params(diffusion.init)
    schedule = dfn.make_noise_schedule(dfn.linear_betas(1000))
    states = diffusion.sample(params, jax.random.key(1), 3, emit=lambda step: step.x)
    denoise = dfn.make_denoiser(diffusion.apply, params, dfn.parameterizations.v)
    solver = dfn.solvers.ddim(dfn.grids.trailing(schedule, 4), 0.3)
    noise_key = jax.random.split(jax.random.key(1), 2)[1]
    wanted = dfn.sample(noise_key, denoise, solver, states.trace[0])
    np.testing.assert_allclose(states.x0, wanted.x0, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("num_classes", "knobs", "message"),
    [
        (0, {"cond": np.zeros(2, int)}, "this model is unconditional: set config.data.num_classes"),
        (3, {"guidance_scale": 2.0}, "guidance_scale was given without cond"),
        (3, {"cond": np.zeros(3, int)}, r"labels must be integers of shape \[\] or \[2\]"),
        (0, {"eta": 1.5}, r"eta must lie in \[0, 1\]; got 1.5"),
        (0, {"num_inference_steps": 1001}, "the 1000 timesteps of the schedule; got 1001"),
    ],
)
def test_bad_requests_for_samples_are_refused(num_classes, knobs, message):
    diffusion = dfn.build(small_config(num_classes=num_classes))
    params = some_params(diffusion.init)
    with pytest.raises(ValueError, match=message):
        diffusion.sample(params, jax.random.key(0), 2, **knobs)
    with pytest.raises(ValueError, match="3 keys for a batch of 2"):
        diffusion.sample(params, jax.random.split(jax.random.key(0), 3), 2)


@pytest.mark.long
@pytest.mark.parametrize("section", ["loss", "sampler"])
def test_every_choice_of_a_config_runs(section):
    """Each name that a message lists, once."""
    choices = {
        "loss": [
            {"loss": {"weight": weight, "time_sampler": sampler, "loss_type": loss_type}}
            for weight, sampler, loss_type in zip(
                ["simple", "uniform", "snr", "min_snr", "truncated_snr", "p2", "edm", "sigmoid"],
                ["uniform", "stratified", "antithetic", "logit_normal"] * 2,
                ["mse", "l1", "huber"] * 3,
            )
        ],
        "sampler": [
            {"sampler": {"name": name, "skip_type": grid}, "parameterization": parameterization}
            for name, grid, parameterization in zip(
                ["ddim", "ancestral"] * 3,
                ["uniform", "quadratic", "leading", "trailing", "log_snr", "uniform"],
                ["epsilon", "x0", "v", "score", "velocity", "edm"],
            )
        ]
        + [{"sampler": {"name": name, "num_inference_steps": 5}} for name in SOLVERS if name != "jump"],
    }
    for sections in choices[section]:
        diffusion = dfn.build(small_config(**sections))
        params = some_params(diffusion.init)
        if section == "loss":
            out, _ = diffusion.loss(params, jax.random.key(1), {"image": jnp.zeros((4, 2))})
        else:
            out = diffusion.sample(params, jax.random.key(1), 4).x0
        assert np.all(np.isfinite(out)), sections


# Names from outside the package.


def test_a_solver_a_guidance_a_backbone_and_an_objective_of_ones_own_are_built_by_name(batch):
    """Each is the package's own under another name, so samples and losses are the same bit for bit."""
    entries = {
        "solvers": {"my_ddim": tables.SolverEntry(lambda settings, inputs: dfn.solvers.ddim(inputs.levels))},
        "guidances": {
            "my_guidance": tables.GuidanceEntry(
                lambda settings, inputs, scale: dfn.guidance.classifier_free(scale, inputs.null_cond)
            )
        },
        "backbones": {"my_mlp": tables.BackboneEntry(dfn.backbones.MLP)},
        "objectives": {"my_objective": tables.ObjectiveEntry(tables.OBJECTIVES["denoising"].make)},
    }
    known = tables.Tables()
    mine = known._replace(**{name: {**getattr(known, name), **entry} for name, entry in entries.items()})
    theirs = small_config(num_classes=3, sampler={"cfg_scale": 2.0})
    config = small_config(
        num_classes=3,
        sampler={"cfg_scale": 2.0, "name": "my_ddim", "guidance": "my_guidance"},
        loss={"objective": "my_objective"},
    )
    config.backbone.name = "my_mlp"
    diffusion, wanted = dfn.build(config, mine), dfn.build(theirs)
    params, key, cond = some_params(wanted.init), jax.random.key(1), jnp.arange(3)
    samples, expected = (each.sample(params, key, 3, cond=cond).x0 for each in (diffusion, wanted))
    np.testing.assert_array_equal(samples, expected)
    np.testing.assert_array_equal(diffusion.loss(params, key, batch)[0], wanted.loss(params, key, batch)[0])
    assert dfn.build_objective(config, mine).extras is None
    assert dfn.build_denoiser(config, mine)(params)(jnp.ones((1, 2)), dfn.Level(0.8, 0.6, 5.0)).x0.shape == (1, 2)
    with pytest.raises(ValueError, match=r"config.loss.objective must be one of .*; got 'my_objective'"):
        dfn.build(config)


def test_every_field_that_build_reads_is_required_and_listed_once():
    names = {section for section in default_config() if section not in ("seed", "prng_impl", "task")}
    for section in names - {"latent", "training", "mesh", "evaluation"}:
        config = small_config()
        with config.unlocked():
            del config[section]
        with pytest.raises(ValueError, match=rf"the config lacks {section}"):
            dfn.build(config)
