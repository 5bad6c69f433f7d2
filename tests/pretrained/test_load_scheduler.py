"""`load_scheduler`: configs of published pipelines, cuts of a loop, compilations, messages, and its docs."""

import json
import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden_files import FOLDER

import diffusers_fn as dfn
from diffusers_fn.pretrained import load_scheduler
from diffusers_fn.pretrained.schedulers import KINDS
from diffusers_fn.pretrained.schedulers.load import _CUTS
from diffusers_fn.pretrained.schedulers.names import REFUSED

PIPELINES = json.loads((FOLDER / "schedulers" / "pipelines.json").read_text())
PAGE = (pathlib.Path(__file__).parents[2] / "docs" / "solvers.md").read_text()
DDIM = {"_class_name": "DDIMScheduler", "clip_sample": False}
EULER = {"_class_name": "EulerDiscreteScheduler", "beta_schedule": "scaled_linear"}
DPM = {"_class_name": "DPMSolverMultistepScheduler"}
SCHEDULE = dfn.make_noise_schedule(dfn.linear_betas(1000))


def network(params, x, t, cond):
    return jnp.tanh(x) * (1 + t / 2000)


def run(scheduler, plan, x, key=None):
    denoise = dfn.make_denoiser(network, None, scheduler.parameterization)
    return dfn.sample(key, denoise, plan.solver, x, final_denoise=plan.final_denoise).x0


@pytest.mark.parametrize("entry", PIPELINES, ids=lambda entry: f"{entry['pipeline']}-{entry['run']}")
def test_published_pipelines_have_the_timesteps_sigmas_and_start_of_the_reference(entry):
    scheduler = load_scheduler({"_class_name": entry["scheduler"], **entry["config"]})
    plan = scheduler.plan(entry["num_steps"], **entry["plan"])
    np.testing.assert_allclose(plan.timesteps, entry["timesteps"], rtol=1e-6)
    assert plan.init_scale == pytest.approx(entry["init_noise_sigma"], rel=1e-6)
    if entry["sigmas"] is not None:
        levels = plan.solver.rows.level
        flow = scheduler.parameterization.name == "velocity"
        sigmas = levels.sigma if flow else levels.sigma / levels.alpha
        np.testing.assert_allclose(
            sigmas[: len(plan.timesteps)], entry["sigmas"][:-1], rtol=2e-5
        )  # their 1 - alpha_bar is float32
        assert plan.final_denoise == (entry["sigmas"][-1] == 0)


def test_a_folder_a_file_and_a_pipeline_folder_are_read(tmp_path):
    (tmp_path / "scheduler").mkdir()
    file = tmp_path / "scheduler" / "scheduler_config.json"
    file.write_text(json.dumps({**DPM, "lambda_min_clipped": float("-inf"), "_diffusers_version": "0.42.1"}))
    for source in (file, file.parent, tmp_path, str(tmp_path)):
        assert load_scheduler(source).name == "DPMSolverMultistepScheduler"
    with pytest.raises(FileNotFoundError, match=r"no scheduler_config\.json in"):
        load_scheduler(tmp_path / "nothing")


def test_ddim_on_a_leading_grid_is_the_papers():
    scheduler = load_scheduler({**DDIM, "beta_schedule": "linear"})
    x = jax.random.normal(jax.random.key(0), (2, 3))
    plain = dfn.sample(None, dfn.make_denoiser(network, None, dfn.parameterizations.epsilon),
                       dfn.solvers.ddim(dfn.grids.leading(SCHEDULE, 10)), x).x0  # fmt: skip
    np.testing.assert_allclose(run(scheduler, scheduler.plan(10), x), plain, rtol=1e-5)


def test_ddim_on_a_linspace_grid_is_not():
    plan = load_scheduler({**DDIM, "timestep_spacing": "linspace"}).plan(30)
    ends = plan.solver.rows.x0[:-1]  # alpha of the level that each step ends at
    assert np.max(np.abs(ends - plan.solver.rows.level.alpha[1:])) > 1e-3


def test_strength_runs_the_last_steps_from_their_level():
    scheduler = load_scheduler(DPM)
    whole, part = scheduler.plan(20), scheduler.plan(20, strength=0.35)
    np.testing.assert_array_equal(part.timesteps, whole.timesteps[-7:])
    assert part.start.sigma == whole.solver.rows.level.sigma[13]
    assert part.start.t == whole.timesteps[13]
    # the first step of a multistep method has no history: order one
    assert part.solver.rows.m[0, 1] == 0
    assert whole.solver.rows.m[13, 1] != 0


@pytest.mark.parametrize("name", ["DDIMScheduler", "EulerDiscreteScheduler"])
def test_two_halves_of_a_loop_are_the_loop(name):
    scheduler = load_scheduler({"_class_name": name, "clip_sample": False})
    x = jax.random.normal(jax.random.key(1), (2, 3))
    first, second = scheduler.plan(10, denoising_end=0.6), scheduler.plan(10, denoising_start=0.6)
    assert max(second.timesteps) < 400 <= min(first.timesteps)
    half = run(scheduler, first, x)
    np.testing.assert_allclose(run(scheduler, second, half), run(scheduler, scheduler.plan(10), x), rtol=2e-5)


def test_plans_of_equal_shape_are_one_compilation():
    traces = []

    @jax.jit
    def images(solver, x):
        traces.append(1)
        denoise = dfn.make_denoiser(network, None, dfn.parameterizations.epsilon)
        return dfn.sample(jax.random.key(0), denoise, solver, x).x0

    x = jnp.ones((1, 4))
    for config in (DPM, {**DPM, "beta_schedule": "scaled_linear"}):
        for options in ({}, {"use_karras_sigmas": True}, {"timestep_spacing": "trailing"}):
            images(load_scheduler(config).plan(6, **options).solver, x)
    assert len(traces) == 1
    for _ in range(2):
        images(load_scheduler({**DPM, "thresholding": True}).plan(6).solver, x)
    assert len(traces) == 2


def test_the_config_clips_and_thresholds():
    big = lambda params, x, t, cond: 10.0 + 0.0 * x  # noqa: E731
    for options, bound in (({"clip_sample": True, "clip_sample_range": 0.5}, 0.5), ({"thresholding": True}, 1.0),
                           ({"clip_sample": False}, 10.0)):  # fmt: skip
        scheduler = load_scheduler({**DDIM, "prediction_type": "sample", **options})
        denoise = dfn.make_denoiser(big, None, scheduler.parameterization)
        x0 = dfn.sample(None, denoise, scheduler.plan(4).solver, jnp.ones((1, 3))).x0
        np.testing.assert_allclose(x0, bound, rtol=1e-6)


def test_zero_terminal_snr_starts_at_alpha_bar_2_to_the_minus_24():
    config = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing", "prediction_type": "v_prediction"}
    plan = load_scheduler({**DPM, **config}).plan(4)
    assert plan.start.alpha == pytest.approx(2.0**-12, rel=1e-14)
    assert load_scheduler({**DDIM, **config}).plan(4).start.alpha == 0.0
    epsilon = load_scheduler({**DDIM, **config, "prediction_type": "epsilon"})
    with pytest.raises(ValueError, match="does not determine x0 at alpha = 0"):
        run(epsilon, epsilon.plan(4), jnp.ones((1, 2)))


def test_the_x0_parameterization_is_refused_on_clean_data_rather_than_nan():
    inverse = {"_class_name": "DDIMInverseScheduler", "prediction_type": "sample"}
    with pytest.raises(ValueError, match="set_alpha_to_one must be false"):
        load_scheduler(inverse).plan(4)
    level = dfn.Level(np.array([1.0, 0.8]), np.array([0.0, 0.6]), np.array([0.0, 1.0]))
    rising = dfn.solvers.linear_solver(level, x=[0.0], x0=0.8, eps=0.6)
    denoise = dfn.make_denoiser(network, None, dfn.parameterizations.x0)
    with pytest.raises(ValueError, match="does not determine eps at sigma = 0"):
        dfn.sample(None, denoise, rising, jnp.ones((1, 2)), final_denoise=False)


def test_the_dynamic_shift_follows_from_the_number_of_tokens():
    flux = load_scheduler({"_class_name": "FlowMatchEulerDiscreteScheduler", "use_dynamic_shifting": True})
    sigmas = lambda **options: flux.plan(4, **options).solver.rows.level.sigma  # noqa: E731
    np.testing.assert_allclose(sigmas(image_seq_len=256), sigmas(mu=0.5), rtol=1e-12)
    np.testing.assert_allclose(sigmas(image_seq_len=4096), sigmas(mu=1.15), rtol=1e-12)


@pytest.mark.parametrize(
    ("config", "options", "message"),
    [
        ({}, {}, "_class_name must be one of .*; got None"),
        ({"_class_name": "MagicScheduler"}, {}, "must be one of .*EulerDiscreteScheduler.*; got 'MagicScheduler'"),
        ({"_class_name": "VQDiffusionScheduler"}, {}, "it samples tokens"),
        ({**DDIM, "magic": 3}, {}, "DDIMScheduler has no option 'magic'"),
        (
            {**DDIM, "beta_schedule": "quad"},
            {},
            "beta_schedule must be one of 'linear'.* for DDIMScheduler; got 'quad'",
        ),
        ({**DDIM, "prediction_type": "noise"}, {}, "prediction_type must be one of"),
        ({"_class_name": "DDPMScheduler", "variance_type": "learned"}, {}, "variance_type 'learned' is not available"),
        ({**DPM, "solver_order": 4}, {}, "solver_order must be an integer from 1 to 3; got 4"),
        ({**DPM, "algorithm_type": "dpmsolver"}, {}, "need final_sigmas_type 'sigma_min'"),
        ({**DPM, "use_karras_sigmas": True, "use_beta_sigmas": True}, {}, "only one of"),
        ({**DPM, "use_flow_sigmas": True, "use_karras_sigmas": True}, {}, "exclude each other"),
        ({"_class_name": "UniPCMultistepScheduler", "solver_p": "DDIM"}, {}, "solver_p, another scheduler"),
        ({"_class_name": "FlowMatchLCMScheduler", "scale_factors": [2]}, {}, "scale_factors"),
        ({"_class_name": "SASolverScheduler", "tau_func": 1}, {}, "tau_func must be a function of the timestep; got 1"),
        (DDIM, {"num_steps": 0}, "num_steps must be an integer of at least 1; got 0"),
        (
            DDIM,
            {"num_steps": 4, "magic": 1},
            "a plan of DDIMScheduler has no argument 'magic'; it takes num_steps, .*eta",
        ),
        (DDIM, {"num_steps": 4, "eta": 2.0}, r"eta must lie in \[0, 1\]"),
        (DDIM, {"num_steps": 4, "prediction_type": "v_prediction"}, "give them to load_scheduler"),
        (DDIM, {"num_steps": 4, "strength": 0.1}, "strength 0.1 leaves no step of 4: use at least 0.25"),
        (DDIM, {"num_steps": 4, "strength": 1.5}, r"strength must lie in \(0, 1\]; got 1.5"),
        (DDIM, {"num_steps": 4, "denoising_end": 1.0}, r"denoising_end must lie in \(0, 1\); got 1.0"),
        (DDIM, {"num_steps": 4, "denoising_end": 0.01}, "denoising_end 0.01 leaves no step"),
        (DDIM, {"num_steps": 4, "denoising_start": 0.5, "strength": 0.5}, "exclude each other"),
        ({**DDIM, "steps_offset": 1}, {"num_steps": 1000}, "timestep 1000 is beyond the 1000 of the schedule"),
        (EULER, {"num_steps": 3, "timesteps": [9, 99]}, "timesteps must be a descending list"),
        (DPM, {"timesteps": [9, 4], "use_karras_sigmas": True}, "timesteps cannot be given with use_karras_sigmas"),
        ({"_class_name": "LCMScheduler"}, {"num_steps": 60}, "num_steps must be at most 50"),
        ({"_class_name": "PNDMScheduler"}, {"num_steps": 3}, "num_steps must be at least 4; got 3"),
        ({"_class_name": "FlowMatchEulerDiscreteScheduler", "use_dynamic_shifting": True}, {"num_steps": 3}, "or mu"),
        ({"_class_name": "DPMSolverMultistepInverseScheduler", "algorithm_type": "sde-dpmsolver++"}, {}, "imaginary"),
    ],
)
def test_what_is_not_available_is_refused_by_name_in_one_line(config, options, message):
    with pytest.raises(ValueError, match=message) as error:
        load_scheduler(config).plan(**options)
    assert "\n" not in str(error.value)


def test_options_of_other_classes_and_metadata_change_nothing():
    other = {
        "_diffusers_version": "0.6",
        "skip_prk_steps": True,
        "set_alpha_to_one": False,
        "interpolation_type": "linear",
    }
    assert load_scheduler({**DPM, **other}).options == load_scheduler(DPM).options
    kept = {**DDIM, "timestep_spacing": "trailing", "_use_default_values": ["timestep_spacing"]}
    assert load_scheduler(kept).options["timestep_spacing"] == "leading"


@pytest.mark.parametrize("name", sorted(KINDS))
def test_tables_are_float64_on_the_host(name):
    plan = load_scheduler({"_class_name": name}).plan(6)
    for leaf in jax.tree.leaves((plan.solver.rows, plan.start)):
        assert isinstance(leaf, np.ndarray | np.float64)
        assert leaf.dtype == np.float64
        assert np.all(np.isfinite(leaf))


def _section(title):
    return PAGE.split(f"## {title}")[1].split("\n## ")[0]


def test_the_page_names_every_class_option_and_argument():
    section = _section("From a scheduler_config.json")
    tables = section.split("\n| option of the config | here |")
    first_cells = lambda text: " ".join(re.findall(r"^\| (.*?) \|", text, re.MULTILINE))  # noqa: E731
    names = lambda text: set(re.findall(r"`(\w+)`", first_cells(text)))  # noqa: E731
    arguments = {name for kind in KINDS.values() for name in kind.run} | set(_CUTS)
    options = {name for kind in KINDS.values() for name in kind.options}
    assert names(tables[0]) == arguments
    assert names(tables[1]) == options
    listed = re.search(r"^Classes: (.*?)\. Other", section, re.MULTILINE | re.DOTALL)
    assert set(re.findall(r"`(\w+)`", listed.group(1))) == set(KINDS)
    assert not set(KINDS) & set(REFUSED)
    refused = re.search(r"\. Other classes are refused with the reason:(.*?)\.\n\n", section, re.DOTALL)
    assert set(re.findall(r"`(\w+)`", refused.group(1))) == set(REFUSED)


# What a value needs beside it, as the page has it: (options, arguments of plan).
NEEDED = {
    "dpmsolver": ({"final_sigmas_type": "sigma_min"}, {}),
    "sde-dpmsolver": ({"final_sigmas_type": "sigma_min"}, {}),
    "use_dynamic_shifting": ({}, {"mu": 0.7}),
    "sample": ({"set_alpha_to_one": False}, {}),
}


def test_all_values_are_accepted_but_those_that_the_page_names():
    section = _section("From a scheduler_config.json")
    rows = re.findall(r"^\| `(\w+)` \| (.*?) \| (`\w+Scheduler`.*?) \|$", section, re.MULTILINE)
    cells = lambda text: re.findall(r"`([^`]+)`", text)  # noqa: E731
    named = {
        (name, option, value) for option, values, names in rows for value in cells(values) for name in cells(names)
    }
    tried, refused = 0, set()
    for name, kind in KINDS.items():
        choices = {option: values for option, values in kind.choices.items() if option in kind.options}
        flags = {option: (True, False) for option, value in kind.options.items() if isinstance(value, bool)}
        for option, value in [(option, value) for option, values in {**flags, **choices}.items() for value in values]:
            more, arguments = NEEDED.get(option if value is True else value, ({}, {}))
            tried += 1
            try:
                load_scheduler({"_class_name": name, option: value, **more}).plan(6, **arguments)
            except ValueError as error:
                refused.add((name, option, value) if option in str(error) else (name, option, str(error)))
    assert refused == named
    assert tried > 400


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_refused_classes_are_refused_with_the_reason(name):
    with pytest.raises(ValueError, match=f"got '{name}': {re.escape(REFUSED[name])}"):
        load_scheduler({"_class_name": name})


def test_options_in_the_table_of_other_libraries_are_known():
    rows = re.findall(r"^\| (.*?) \| .* \|$", _section("Options of other libraries"), re.MULTILINE)
    words = {word for row in rows for word in re.findall(r"\b[a-z]+(?:_[a-z]+)+\b", row.split("(only")[0])}
    known = {name for kind in KINDS.values() for name in (*kind.options, *kind.run)}
    theirs = {"final_alpha_cumprod", "alphas_cumprod", "score_sde"}  # other libraries' variables and names
    assert words - theirs <= known | {name.lower() for name in known}, words - known


def test_the_example_of_the_page_runs():
    code = re.search(r"```python\n(.*?)```", _section("From a scheduler_config.json"), re.DOTALL).group(1)
    values = {}
    exec(code, values)
    assert values["images"].shape == (1, 8, 8, 4)
    assert bool(jnp.all(jnp.isfinite(values["images"])))
