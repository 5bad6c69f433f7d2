"""Grids of other libraries: every option of the reference schedulers as a call, compared with recorded numbers.

The functions below translate a reference's configuration (`timestep_spacing`, `use_karras_sigmas`, ...) into a call.
tests/golden/schedules/meta.json has the configuration of each case.
"""

import dataclasses

import numpy as np
import pytest
from golden_files import load, meta

import diffusers_fn as dfn
from diffusers_fn import grids, processes

SCHEDULE = dfn.make_noise_schedule(dfn.scaled_linear_betas(1000))
ROWS = {row["name"]: row for row in meta("schedules")["grids"]}

TABLE = ("DDPMScheduler", "DDIMScheduler")
SIGMA = ("EulerDiscreteScheduler", "HeunDiscreteScheduler", "LMSDiscreteScheduler")
FAST = ("DPMSolverMultistepScheduler", "UniPCMultistepScheduler", "DEISMultistepScheduler")
EDM = ("EDMEulerScheduler", "EDMDPMSolverMultistepScheduler")

# With one step these schedulers list t = 0, the clean end of linspace; a plan here starts at the noise.
FROM_THE_WRONG_END = {"DDPMScheduler", "DDIMScheduler", "EulerDiscreteScheduler", "HeunDiscreteScheduler"}


def plan(row):
    """Returns the levels for a reference's configuration."""
    cls, config, n = row["cls"], row["config"], row["num_inference_steps"]
    if cls.startswith("FlowMatch") or config.get("use_flow_sigmas"):
        return flow_plan(row)
    if cls in EDM:
        return {"karras": grids.karras, "exponential": grids.exponential}[config["sigma_schedule"]](n)
    if config.get("use_karras_sigmas"):
        return grids.karras(n, schedule=SCHEDULE)
    if config.get("use_exponential_sigmas"):
        return grids.exponential(n, schedule=SCHEDULE)
    if config.get("use_lu_lambdas"):
        return grids.uniform_log_snr(SCHEDULE, n)
    if config.get("use_beta_sigmas"):
        ends = dfn.level_at(SCHEDULE, np.array([999, 0]))
        sigma_max, sigma_min = ends.sigma / ends.alpha
        sigmas = grids.beta(processes.edm(sigma_min, sigma_max), n).sigma
        return grids.at_ratios(sigmas, SCHEDULE)
    if config.get("interpolation_type") == "log_linear":
        return grids.drop_last(grids.exponential(n + 1, schedule=SCHEDULE))
    if cls == "LCMScheduler":
        trained = grids.trailing(SCHEDULE, config["original_inference_steps"]).t.astype(int)
        picked = np.floor(np.linspace(0, len(trained), n, endpoint=False)).astype(int)
        return dfn.level_at(SCHEDULE, trained[picked])
    spacing, offset = config.get("timestep_spacing", "linspace"), config.get("steps_offset", 0)
    if spacing == "trailing":
        return grids.trailing(SCHEDULE, n)
    if spacing == "leading":
        return (
            grids.drop_last(grids.leading(SCHEDULE, n + 1, offset))
            if cls in FAST
            else grids.leading(SCHEDULE, n, offset)
        )
    if cls in SIGMA:
        return grids.uniform_t(processes.tabulated(SCHEDULE, processes.linear_sigma), n)
    if cls in FAST:
        return grids.drop_last(grids.linspace(SCHEDULE, n + 1))
    return grids.linspace(SCHEDULE, n)


def flow_plan(row):
    cls, config, n = row["cls"], row["config"], row["num_inference_steps"]
    thousandfold = processes.labelled(processes.flow(), lambda t: 1000 * t)
    if config.get("use_flow_sigmas"):
        shifted = processes.shifted(thousandfold, config["flow_shift"])
        if cls == "UniPCMultistepScheduler":  # it then writes 1 - 1e-6 over the first sigma
            return grids.drop_last(grids.uniform_t(shifted, n + 1, t_max=1.0, t_min=1 / 1000))
        return grids.drop_last(grids.uniform_t(shifted, n + 1, t_max=1 - 1 / 1000, t_min=0.0))
    if config.get("use_karras_sigmas"):
        return thousandfold(grids.karras(n, 1e-3, 1.0).sigma)
    if config.get("use_exponential_sigmas"):
        return thousandfold(grids.exponential(n, 1e-3, 1.0).sigma)
    if config.get("use_dynamic_shifting"):
        mu = row["extra"]["mu"]
        shift = mu if config.get("time_shift_type") == "linear" else np.exp(mu)
        return grids.uniform_t(processes.shifted(thousandfold, shift), n, t_max=1.0, t_min=1e-3)
    # It shifts the end of its linspace, and then the whole grid.
    shifted = processes.shifted(thousandfold, config["shift"])
    levels = grids.uniform_t(shifted, n, t_min=shifted(1e-3).sigma)
    if "shift_terminal" in config:  # stretched so that the last sigma is the given one
        stretch = (1 - config["shift_terminal"]) / (1 - levels.sigma[-1])
        levels = thousandfold(1 - (1 - levels.sigma) * stretch)
    return levels


def labels(row, levels):
    """Returns the levels with the reference's time labels: fractional timesteps, rounded or truncated ones."""
    config = row["config"]
    if config.get("use_flow_sigmas"):
        return dataclasses.replace(levels, t=np.floor(np.minimum(levels.t, 1000 - 1e-3) + 1e-6))
    if row["cls"] in FAST and config.get("use_karras_sigmas"):
        return grids.round_labels(levels)
    if row["cls"] in FAST and any(key.startswith("use_") for key in config):
        rounded = grids.round_labels(levels).t if config.get("use_lu_lambdas") else np.floor(levels.t + 1e-6)
        return dataclasses.replace(levels, t=rounded)
    return levels


def _stages_once(values, cls):
    return values[::2] if cls == "HeunDiscreteScheduler" else values  # its second stages repeat t and sigma


@pytest.mark.parametrize("name", ROWS)
def test_a_reference_grid_is_a_call_here(name):
    row, golden = ROWS[name], load("schedules/grids")
    cls, n = row["cls"], row["num_inference_steps"]
    wanted_t = _stages_once(golden[f"{name}/timesteps"], cls)
    if cls == "DDIMInverseScheduler":
        wanted_t = wanted_t[::-1]  # the plan of `invert` is written noisiest first
    levels = plan(row)
    if n == 1 and cls in FROM_THE_WRONG_END and row["config"].get("timestep_spacing") == "linspace":
        np.testing.assert_array_equal(np.concatenate([wanted_t, levels.t]), [0, 999])
        return

    exact = row["dtype"] == "f64"
    if row["config"].get("interpolation_type") != "log_linear":  # its labels are those of another grid
        wanted = labels(row, levels).t
        np.testing.assert_allclose(wanted, wanted_t[:n], rtol=1e-9 if exact else 1e-6, atol=1e-6 if exact else 1e-3)
    if f"{name}/sigmas" in golden:
        ratio = levels.sigma if cls.startswith("FlowMatch") or "flow" in name else levels.sigma / levels.alpha
        wanted_sigma = _stages_once(golden[f"{name}/sigmas"], cls)[:n]
        np.testing.assert_allclose(ratio, wanted_sigma, rtol=1e-10 if exact else 5e-5)


def test_the_discrete_wrapper_interpolates_in_log_sigma():
    golden = load("orig_kdiffusion/discrete")
    alphas_cumprod = golden["discrete/alphas_cumprod"]
    schedule = dfn.make_noise_schedule(1 - alphas_cumprod / np.concatenate([[1.0], alphas_cumprod[:-1]]))
    process = processes.tabulated(schedule)
    levels = grids.uniform_t(schedule, 12)
    np.testing.assert_allclose(levels.sigma / levels.alpha, golden["discrete/get_sigmas_12"][:-1], rtol=1e-10)
    sigmas, wanted = golden["discrete/sigma_test"], golden["discrete/sigma_to_t_q0"]
    inside = (wanted > 0) & (wanted < 999)  # it clamps values outside, which are refused here
    assert inside.sum() >= 4
    sigmas = np.round(sigmas[inside], 6)  # its input was decimal numbers, which the file stores as float32
    np.testing.assert_allclose(process.time(-2 * np.log(sigmas)), wanted[inside], rtol=1e-9, atol=1e-9)
    # Its quantised form is the timestep nearest in log sigma: the rounded interpolation, except for ties.
    np.testing.assert_array_equal(np.round(wanted[inside]), golden["discrete/sigma_to_t_q1"][inside])


def test_edm_vp_and_iddpm_levels():
    golden = load("orig_edm/schedules")
    process = processes.vp(0.1, 20.0)
    level = process(golden["VP/t"])
    np.testing.assert_allclose(level.sigma / level.alpha, golden["VP/sigma"], rtol=1e-10)
    np.testing.assert_allclose(process.time(dfn.log_snr(level)), golden["VP/sigma_inv"], rtol=1e-6, atol=1e-8)
    # The u table counts from the noise and ends on 0; it clips its ratios where cosine_betas clips beta.
    table = dfn.make_noise_schedule(dfn.cosine_betas(1000))
    ratio = table.sqrt_one_minus_alphas_cumprod / table.sqrt_alphas_cumprod
    np.testing.assert_allclose(ratio[::-1], golden["iDDPM/u"][:-1], rtol=1e-8)


def test_dpm_solvers_quadratic_times():
    golden = load("orig_dpm_unipc/schedules")["timesteps/sd/time_quadratic/10"]
    np.testing.assert_allclose(grids.power_t(processes.vp(), 11, t_max=1.0, t_min=1e-3).t, golden, rtol=1e-12)
