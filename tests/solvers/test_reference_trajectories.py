"""Other people's sampling runs, replayed in double precision from the rows of our tables.

diffusers (step by step, on exact denoisers), its published loops, k-diffusion, and the authors of DPM-Solver and UniPC.
The configuration of each run determines our solver; where a library does something of its own, this file shows how to
write it here.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden_files import exact_denoiser, load, meta
from solver_checks import recorded_denoisers, states

import diffusers_fn as dfn
from diffusers_fn import grids, processes, solvers
from diffusers_fn.solvers import data_prediction, noise_prediction

META = meta("trajectories")
ANALYTIC = load("traj/analytic")


DENOISERS = recorded_denoisers(ANALYTIC)


def close(x, wanted, rtol=1e-9):
    np.testing.assert_allclose(x, wanted, rtol=rtol, atol=rtol * np.abs(wanted).max())


def then(levels, alpha, sigma):
    """The plan with one more level, labelled 0."""
    return dfn.Level(*(np.append(a, b) for a, b in zip((levels.alpha, levels.sigma, levels.t), (alpha, sigma, 0.0))))


def nearly_clean(levels):
    """The plan with one more level, for libraries whose last step into sigma = 0 is not the denoise."""
    return then(levels, 1.0, 1e-13)


# Step by step: diffusers' schedulers.


def schedule_of(config):
    make = {"linear": dfn.linear_betas, "scaled_linear": dfn.scaled_linear_betas}[config["beta_schedule"]]
    return dfn.make_noise_schedule(make(config["num_train_timesteps"], config["beta_start"], config["beta_end"]))


def recorded_levels(run, golden):
    """Level[N]: where the library evaluated, in our alpha and sigma."""
    case = run["key"].rsplit("/", 1)[0]
    alpha, sigma = golden[f"{case}/a_s_f64"].T
    if run["family"] == "ve":  # its state is x / alpha
        alpha, sigma = np.ones_like(alpha), sigma / alpha
    visits = slice(None)
    if "Heun" in run["cls"]:  # 0, 1, 1, 2, 2, ...
        visits = np.r_[0, 1 : alpha.size : 2]
    t = golden.get(f"{case}/timesteps", np.zeros_like(alpha))
    return dfn.Level(alpha[visits], sigma[visits], np.asarray(t, np.float64)[visits])


def stop_at(levels, run, golden):
    """The plan with the level that final_sigmas_type = "sigma_min" ends at; sigma / alpha is recorded."""
    ratio = golden[run["key"].rsplit("/", 1)[0] + "/sigmas_f64"][-1]
    if run["family"] == "edm":
        return then(levels, 1.0, ratio)
    if ratio == levels.sigma[-1] / levels.alpha[-1]:
        # A repeated last sigma is a step of length 0, which only corrects the last state (UniPC).
        ratio = ratio * (1 - 1e-10)
    return then(levels, 1 / np.hypot(1.0, ratio), ratio / np.hypot(1.0, ratio))


def dpm_solver(config, lower, ends_at_level):
    """solver_type "heun" is `taylor`; lower_order_final counts the final denoise as the step of order one."""
    order, algorithm = config.get("solver_order", 2), config.get("algorithm_type", "dpmsolver++")
    options = {}
    if order > 1:
        options["taylor"] = config.get("solver_type", "midpoint") == "heun"
        options["euler_at_final"] = ends_at_level and (lower or config.get("euler_at_final", False))
    if order > 2:
        options["lower_order_final"] = lower
    form = data_prediction if algorithm.endswith("++") else noise_prediction
    name = {1: "dpmpp_1", 2: "dpmpp_2m", 3: "dpmpp_3m"}[order]
    if algorithm.startswith("sde"):
        return lambda levels: getattr(solvers, f"{name}_sde")(levels, 1.0, form, **options)
    return lambda levels: getattr(solvers, name)(levels, form, **options)


def solver_of(run, golden):
    """Returns (solver, whether the run ends with a denoise)."""
    config, cls, levels = run["config"], run["cls"].removesuffix("Scheduler"), recorded_levels(run, golden)
    ends_at_level = config.get("final_sigmas_type") == "sigma_min"
    few = config.get("lower_order_final", True) and run["N"] < 15
    match cls:
        case "DDIM":
            if not config.get("set_alpha_to_one", True):  # the last step goes to timestep 0
                last = dfn.level_at(schedule_of(config), 0)
                return solvers.ddim(then(levels, last.alpha, last.sigma)), False
            return solvers.ddim(levels), True
        case "DDPM":
            return solvers.ancestral(levels), True
        case "DPMSolverMultistep" | "EDMDPMSolverMultistep":
            make = dpm_solver(config, few, ends_at_level)
            return make(stop_at(levels, run, golden) if ends_at_level else levels), not ends_at_level
        case "DEISMultistep":
            options = {"lower_order_final": few, "euler_at_final": few}
            return solvers.deis(stop_at(levels, run, golden), config["solver_order"], **options), False
        case "UniPCMultistep":
            lower = config.get("lower_order_final", True)
            levels = stop_at(levels, run, golden) if ends_at_level else levels
            solver = solvers.unipc(
                levels,
                config["solver_order"],
                data_prediction if config.get("predict_x0", True) else noise_prediction,
                bh1=config["solver_type"] == "bh1",
                lower_order_final=lower,
                euler_at_final=lower and ends_at_level,
            )
            return solver, not ends_at_level
        case "EulerDiscrete" | "EDMEuler" | "FlowMatchEulerDiscrete":
            return solvers.euler(levels), True
        case "EulerAncestralDiscrete":
            return solvers.euler_ancestral(levels), True
        case "HeunDiscrete" | "FlowMatchHeunDiscrete":
            return solvers.heun(levels), True
        case "LMSDiscrete":  # it extrapolates into sigma = 0
            return solvers.lms(nearly_clean(levels), run["step_kwargs"]["order"]), False
        case (
            "PNDM"
        ):  # 0, middle, middle, 1, 1, middle, middle, 2, 2, middle, middle, 3, 3, 4, ...; the last step is 0 -> 0
            middles = jax.tree.map(lambda a: a[[1, 5, 9]], levels)
            return solvers.pndm(jax.tree.map(lambda a: np.append(a[[0, 3, 7]], a[12:]), levels), middles), False
        case "LCM":
            return solvers.lcm(levels), True
        case "TCD":  # its last step goes to timestep 0, too; times are rounded down
            schedule = schedule_of(config)
            last = dfn.level_at(schedule, 0)
            rounded = lambda t: dfn.level_at(schedule, np.floor(t + 1e-9).astype(int))  # noqa: E731
            return solvers.tcd(then(levels, last.alpha, last.sigma), rounded, run["step_kwargs"]["eta"]), False
    raise AssertionError(cls)


def denoiser_of(run):
    exact = DENOISERS[run["dist"]]
    if run["config"].get("clip_sample"):
        return lambda x, level: (np.clip(exact(x, level)[0], -1.0, 1.0), exact(x, level)[1])
    if run["cls"] == "LCMScheduler":
        return boundary(exact)
    return exact


def boundary(denoise):
    """A consistency model's x0_hat, which is x at t = 0 (timestep_scaling 10, sigma_data 0.5)."""

    def bounded(x, level):
        x0, eps = denoise(x, level)
        t = 10.0 * level.t
        return 0.25 / (t**2 + 0.25) * x + t / np.sqrt(t**2 + 0.25) * x0, eps

    return bounded


RUNS = {run["key"]: run for run in META["runs"]["rows"]}
# One library's third-order SDE has a sign of its own: see the test after this one.
OTHER_SIGN = [key for key in RUNS if key.startswith("sde_dpmpp_3m")]


@pytest.mark.parametrize("key", [key for key in RUNS if key not in OTHER_SIGN])
def test_runs_of_diffusers(key):
    run, golden = RUNS[key], load("trajectories/runs")
    solver, final_denoise = solver_of(run, golden)
    wanted = golden[f"{key}/traj_f64"]
    draws = golden[run["noise_key"]] if run["noise_key"] else ()
    if run["cls"] == "PNDMScheduler":  # its last step has length 0
        np.testing.assert_array_equal(wanted[-1], wanted[-2])
        wanted = wanted[:-1]
    # Of DDPM, whose last noise has a variance of 1e-20 there, 1e-10 is left; elsewhere it is rounding.
    close(states(solver, denoiser_of(run), wanted[0], draws, final_denoise=final_denoise), wanted)


@pytest.mark.parametrize("key", OTHER_SIGN)
def test_a_sign_that_is_not_offered(key):
    """That third-order SDE weighs D_2 by -phi_2 / h - 1/2 where it is -phi_2 / h + 1/2: off by alpha' D_2, h^2 m''."""
    run, golden = RUNS[key], load("trajectories/runs")
    levels = recorded_levels(run, golden)
    solver = solvers.dpmpp_3m_sde(levels, taylor=False)
    h = 0.5 * np.diff(dfn.log_snr(levels))
    m = solver.rows.m.copy()
    for i in range(2, h.size):
        r0, r1 = h[i - 1] / h[i], h[i - 2] / h[i]
        m[i] -= levels.alpha[i + 1] * np.array([1 / r0, -1 / r0 - 1 / r1, 1 / r1]) / (r0 + r1)
    wanted, draws = golden[f"{key}/traj_f64"], golden[run["noise_key"]]
    other = dataclasses.replace(solver, rows=dataclasses.replace(solver.rows, m=m))
    close(states(other, denoiser_of(run), wanted[0], draws), wanted)
    ours = states(solver, denoiser_of(run), wanted[0], draws)
    close(ours[:3], wanted[:3])  # the start, and two steps of lower order
    assert np.abs(ours[-1] - wanted[-1]).max() > 0.1


# The same by `sample`, in double and single precision.
THROUGH_SAMPLE = [
    "dpmpp_3m_midpoint_lin/20",
    "dpm_2m_heun_sigmin/10",
    "deis_2/10",
    "unipc_3_bh2_nolof_sigmin/20",
    "heun_karras/10",
    "pndm_prk/10",
    "lms_order3/20",
    "flow_heun_shift3/10",
    "sde_dpmpp_2m_heun/20",
    "sde_dpm_1m_midpoint/20",
    "tcd_0.3/8",
]


def sampled(key, replayed_noise, dtype):
    """(our states after each row, the library's)."""
    run, golden = RUNS[key], load("trajectories/runs")
    solver, final_denoise = solver_of(run, golden)
    wanted, scan, random_key = golden[f"{key}/traj_f64"], jax.lax.scan, None
    num_rows = solver.rows.x.shape[0] - (not final_denoise)
    if solver.stochastic:
        draws = golden[run["noise_key"]]
        draws = np.concatenate([draws, 0 * draws])[:num_rows]
        scan, random_key = replayed_noise.scan(draws), jax.random.key(0)
    x = jnp.asarray(wanted[0], dtype)
    run_states = dfn.sample(
        random_key,
        exact_denoiser(run["dist"]),
        solver,
        x,
        emit=lambda step: step.x_next,
        final_denoise=final_denoise,
        scan=scan,
    ).trace
    return run_states, wanted[1 : num_rows + 1]


@pytest.mark.parametrize("key", THROUGH_SAMPLE)
@pytest.mark.usefixtures("x64")
def test_runs_of_diffusers_through_sample(key, replayed_noise):
    close(*sampled(f"{key}/gmm", replayed_noise, jnp.float64), rtol=1e-8)


@pytest.mark.parametrize("key", THROUGH_SAMPLE)
def test_runs_of_diffusers_in_single_precision(key, replayed_noise):
    """As near to double precision as their own single precision is, within a small factor."""
    ours, wanted = sampled(f"{key}/gmm", replayed_noise, jnp.float32)
    assert ours.dtype == jnp.float32
    assert np.abs(ours[-1] - wanted[-1]).max() < max(10 * RUNS[f"{key}/gmm"]["f32_f64_maxdiff"], 5e-6)


# k-diffusion: sigma 0 is appended to its levels, and multistep samplers end with a step of order one, x0_hat.

K_SIGMAS = {
    "karras20_rho5": lambda: grids.karras(20, 0.02, 80.0, 5.0).sigma,
    "exp10": lambda: grids.exponential(10, 0.0292, 14.6146).sigma,
    "vp10": lambda: (lambda level: level.sigma / level.alpha)(processes.vp(0.1, 20.0)(np.linspace(1.0, 1e-3, 10))),
}
K_SAMPLERS = {
    "euler": solvers.euler,
    "heun": solvers.heun,
    "lms": solvers.lms,
    "lms_order2": lambda levels: solvers.lms(levels, 2),
    "dpmpp_2m": solvers.dpmpp_2m,
    "euler_a": solvers.euler_ancestral,
    "euler_a_eta0.5": lambda levels: solvers.euler_ancestral(levels, 0.5),
    "euler_a_eta0": lambda levels: solvers.euler_ancestral(levels, 0),
    "dpmpp_2m_sde_midpoint": solvers.dpmpp_2m_sde,
    "dpmpp_2m_sde_heun": lambda levels: solvers.dpmpp_2m_sde(levels, 0.7, taylor=True),
    "dpmpp_2m_sde_eta0": lambda levels: solvers.dpmpp_2m_sde(levels, 0),
    "dpmpp_3m_sde": solvers.dpmpp_3m_sde,
    "dpmpp_3m_sde_eta0": lambda levels: solvers.dpmpp_3m_sde(levels, np.array(0.0)),
}


@pytest.mark.parametrize("index", range(len(META["kdiffusion"]["keys"])))
def test_samples_of_k_diffusion(index):
    golden = load("trajectories/kdiffusion")
    _, dist, grid, name = META["kdiffusion"]["keys"][index].split("/")
    sigma = K_SIGMAS[grid]()
    levels = dfn.Level(np.ones_like(sigma), sigma, np.log(sigma) / 4)
    extrapolates = name.startswith("lms")
    solver = K_SAMPLERS[name](nearly_clean(levels) if extrapolates else levels)
    draws = golden["noise_bank"][: sigma.size - 1]
    x = golden["xT_unit"] * sigma[0]
    close(states(solver, DENOISERS[dist], x, draws, final_denoise=not extrapolates)[-1], golden["samples"][index])


# The authors of DPM-Solver and UniPC: from t = 1 to t = 1e-3, whose level is the last one of the plan.


def authors_levels(schedule, skip, num_steps):
    """Their discrete tables are at t = 1/1000, 2/1000, ..., 1, with log(alpha) linear in between."""
    if schedule == "linear":
        process, time, table_time = processes.vp(), processes.vp().time, lambda t: t
    else:
        table = {"lin": dfn.linear_betas(1000), "sd": dfn.scaled_linear_betas(1000, 0.00085, 0.012)}[schedule]
        process = processes.tabulated(dfn.make_noise_schedule(table), processes.linear_log_alpha)
        time, table_time = (lambda log_snr: (process.time(log_snr) + 1) / 1000), (lambda t: 1000 * t - 1)
    first, last = 1.0, 1e-3
    if skip == "time_uniform":
        t = np.linspace(first, last, num_steps + 1)
    elif skip == "time_quadratic":
        t = np.linspace(first**0.5, last**0.5, num_steps + 1) ** 2
    else:
        ends = dfn.log_snr(process(table_time(np.array([first, last]))))
        t = np.clip(time(np.linspace(*ends, num_steps + 1)), last, first)
    return process(np.clip(table_time(t), process.t_min if schedule != "linear" else 0.0, None))


AUTHORS = META["authors"]["keys"]
# The exact weights ("vary_coeff") of orders two and three: see the test after these.
INCONSISTENT = [i for i, key in enumerate(AUTHORS) if "vary_coeff" in key and "/o1/" not in key]


@pytest.mark.parametrize("index", [i for i, key in enumerate(AUTHORS) if key.startswith("dpm")])
def test_samples_of_dpm_solver(index):
    _, schedule, dist, algorithm, skip, _, order, kind, flags, num_steps = AUTHORS[index].split("/")
    lower = "lof1" in flags and int(num_steps) < 10
    denoises = "dz1" in flags
    config = {
        "solver_order": int(order[1:]),
        "algorithm_type": algorithm,
        "solver_type": "heun" if kind == "taylor" else "midpoint",
    }
    solver = dpm_solver(config, lower, ends_at_level=True)(authors_levels(schedule, skip, int(num_steps)))
    golden = load("trajectories/authors")
    close(states(solver, DENOISERS[dist], golden["xT"], (), final_denoise=denoises)[-1], golden["samples"][index])


def authors_unipc(key):
    _, schedule, dist, algorithm, variant, skip, order, flags, num_steps = key.split("/")
    lower, order = flags == "lof1", int(order[1:])
    form = {"data_prediction": data_prediction, "noise_prediction": noise_prediction}[algorithm]
    levels = authors_levels(schedule, skip, int(num_steps))
    options = {"lower_order_final": lower, "euler_at_final": lower}
    if variant == "vary_coeff":
        solver = solvers.sa_solver(levels, 0, order, order + 1, form, simplified=False, **options)
    else:
        solver = solvers.unipc(levels, order, form, bh1=variant == "bh1", **options)
    return solver, DENOISERS[dist]


@pytest.mark.parametrize(
    "index", [i for i, key in enumerate(AUTHORS) if key.startswith("unipc") and i not in INCONSISTENT]
)
def test_samples_of_unipc(index):
    golden = load("trajectories/authors")
    solver, denoise = authors_unipc(AUTHORS[index])
    close(states(solver, denoise, golden["xT"], (), final_denoise=False)[-1], golden["samples"][index])


def inconsistent_corrector(levels, order, form, lower, denoise, x):
    """The authors' exact-weight variant: its corrector gives m' a single weight, that of the last derivative but one.

    C_ij = r_i^j / (j + 1)! maps h^(j+1) m^(j+1) to the differences (m_i - m_1) / r_i. The predictor sums phi_(j+2)
    times all derivatives; so should the corrector, with r = 1 as one more row of C.
    """
    half_log_snr, sign = 0.5 * dfn.log_snr(levels), -form.sign
    kept = [(half_log_snr[0], denoise(x, levels[0])[form.keeps.index(1.0)])]
    for i in range(1, levels.sigma.size):
        start, end = levels[i - 1], levels[i]
        p = min(i, order, levels.sigma.size - i if lower else order)
        h = half_log_snr[i] - half_log_snr[i - 1]
        (u, m), *before = kept[::-1][:p]
        r = np.array([(v - u) / h for v, _ in before] + [1.0])
        c = np.stack([r**j / np.prod(np.arange(1.0, j + 2)) for j in range(p)], axis=1)
        phi = [np.expm1(sign * h)]
        for k in range(1, p + 1):
            phi.append(phi[-1] / (sign * h) - 1 / np.prod(np.arange(1.0, k + 1)))
        differences = [(n - m) / r_i for (_, n), r_i in zip(before, r)]
        scaled, rate = form.scale(end) / form.scale(start) * x, form.rate(end)

        def weighed(inverse, p=p, phi=phi, differences=differences):
            return sum(phi[j + 1] * inverse[j, k] * differences[k] for j in range(p - 1) for k in range(p - 1))

        x = scaled - rate * (phi[0] * m + weighed(np.linalg.inv(c[:-1, :-1])))
        if i < levels.sigma.size - 1:
            new = denoise(x, end)[form.keeps.index(1.0)]
            inverse = np.linalg.inv(c)
            x = scaled - rate * (phi[0] * m + weighed(inverse) + phi[p] * inverse[max(p - 2, 0), -1] * (new - m))
            kept.append((half_log_snr[i], new))
    return x


@pytest.mark.parametrize("index", INCONSISTENT)
def test_a_corrector_that_is_not_offered(index):
    _, schedule, dist, algorithm, _, skip, order, flags, num_steps = AUTHORS[index].split("/")
    form = {"data_prediction": data_prediction, "noise_prediction": noise_prediction}[algorithm]
    levels, golden = authors_levels(schedule, skip, int(num_steps)), load("trajectories/authors")
    x = inconsistent_corrector(levels, int(order[1:]), form, flags == "lof1", DENOISERS[dist], golden["xT"])
    close(x, golden["samples"][index])


def test_why_that_corrector_is_not_offered():
    """Of order two it converges with order one, where ours has order three."""
    errors = {"theirs": [], "ours": []}
    for n in (40, 80):
        levels = grids.uniform_log_snr(processes.vp(), n)
        x = levels.alpha[0] * ANALYTIC["mu"] + np.hypot(levels.alpha[0] * ANALYTIC["sd"], levels.sigma[0])
        truth = levels.alpha[-1] * ANALYTIC["mu"] + np.hypot(levels.alpha[-1] * ANALYTIC["sd"], levels.sigma[-1])
        theirs = inconsistent_corrector(levels, 2, data_prediction, False, DENOISERS["gauss"], x)
        solver = solvers.sa_solver(levels, 0, 2, 3, simplified=False, lower_order_final=False)
        ours = states(solver, DENOISERS["gauss"], x, final_denoise=False)[-1]
        for name, end in (("theirs", theirs), ("ours", ours)):
            errors[name].append(np.abs(end - truth).max())
    assert np.log2(errors["theirs"][0] / errors["theirs"][1]) == pytest.approx(1.0, abs=0.3)
    assert np.log2(errors["ours"][0] / errors["ours"][1]) > 2.5


# Loops whose sums diffusers publishes. Their network is x t / (t + 1), of no data: what counts is the arithmetic.

LOOPS = {row["name"]: row for row in META["loops"]["table"]}
DETER = np.moveaxis(np.arange(768.0).reshape(3, 8, 8, 4), -1, 0) / 768


def network(x, t):
    return x * (t / (t + 1))


def of_epsilon(x, level):
    eps = network(x, level.t)
    return (x - level.sigma * eps) / level.alpha, eps


def of_v(x, level):
    v = network(x, level.t)
    return level.alpha * x - level.sigma * v, level.sigma * x + level.alpha * v


def of_edm(x, level):
    total = np.hypot(level.sigma, 0.5)
    x0 = 0.25 / total**2 * x + level.sigma * 0.5 / total * network(x / total, level.t)
    return x0, (x - x0) / level.sigma


def overwritten(x, level):
    """The published loops of the sigma-space schedulers put the network's scaled input in place of the state."""
    x = x / np.hypot(1.0, level.sigma)
    eps = network(x, level.t)
    return x - level.sigma * eps, eps


def going_on_from_scaled(solver, every=1):
    """The table with that scaling in the coefficient of x, in the first row of each step; DDIM needs none."""
    x = solver.rows.x.copy()
    x[:-1:every, 0] /= np.hypot(1.0, solver.rows.level.sigma[:-1:every])
    return dataclasses.replace(solver, rows=dataclasses.replace(solver.rows, x=x))


def fractional(num_steps):
    """Euler, Heun, LMS: t is not rounded, and sigma / alpha is linear in it."""
    process = processes.tabulated(dfn.make_noise_schedule(dfn.linear_betas(1100)), processes.linear_sigma)
    level = process(np.linspace(1099.0, 0.0, num_steps))
    return dfn.Level(np.ones(num_steps), level.sigma / level.alpha, level.t)


def published_loops():
    """name -> (solver, denoiser, start, whether it ends with a denoise)."""
    linear = dfn.make_noise_schedule(dfn.linear_betas(1000))
    to_zero, ten = grids.linspace(linear, 11), fractional(10)
    karras = grids.karras(10, schedule=linear)
    karras = dfn.Level(karras.alpha, karras.sigma, np.round(karras.t))
    leading = np.arange(900, -1, -100)
    pndm = solvers.pndm(dfn.level_at(linear, leading), dfn.level_at(linear, leading[:3] - 50))
    scaled_linear = dfn.make_noise_schedule(dfn.scaled_linear_betas(1000, 0.00085, 0.012))
    noisy = DETER * ten.sigma[0]
    # KDPM2 labels the levels inside its steps by log(sigma / alpha), linear in t.
    kdpm2 = solvers.dpm2(ten)
    t = processes.tabulated(dfn.make_noise_schedule(dfn.linear_betas(1100))).time(dfn.log_snr(kdpm2.rows.level))
    t[::2] = ten.t
    level = dataclasses.replace(kdpm2.rows.level, t=t)
    kdpm2 = dataclasses.replace(kdpm2, rows=dataclasses.replace(kdpm2.rows, level=level))
    lowered = {"lower_order_final": True, "euler_at_final": True}
    return {
        "dpmpp_2m": (solvers.dpmpp_2m(to_zero), of_epsilon, DETER, False),
        "dpmpp_2m_karras_v": (solvers.dpmpp_2m(karras), of_v, DETER, False),
        "dpmpp_2s": (solvers.singlestep(to_zero, [2] * 5), of_epsilon, DETER, False),
        "unipc": (solvers.unipc(to_zero, 2, **lowered), of_epsilon, DETER, False),
        "deis": (solvers.deis(to_zero, 2, **lowered), of_epsilon, DETER, False),
        "pndm_eps": (pndm, of_epsilon, DETER, False),
        "euler_eps": (solvers.ddim(ten), overwritten, noisy, True),
        "euler_a_eps": (solvers.euler_ancestral(ten), overwritten, noisy, True),
        "heun_eps": (going_on_from_scaled(solvers.heun(ten), every=2), overwritten, noisy, True),
        "kdpm2_eps": (going_on_from_scaled(kdpm2, every=2), overwritten, noisy, True),
        "lms_eps": (going_on_from_scaled(solvers.lms(nearly_clean(ten))), overwritten, noisy, False),
        "edm_euler": (solvers.euler(grids.karras(10)), of_edm, DETER * np.hypot(80.0, 1.0), True),
        "lcm_1": (
            solvers.lcm(dfn.level_at(scaled_linear, np.array([999]))),
            boundary(of_epsilon),
            DETER,
            True,
        ),
    }


@pytest.mark.parametrize("name", LOOPS)
def test_published_loops(name):
    solver, denoise, x, final_denoise = published_loops()[name]
    golden, row = load("trajectories/loops"), LOOPS[name]
    draws = golden[row["noise_key"]][:-1] if row["n_noise_draws"] else ()
    end = states(solver, denoise, x, draws, final_denoise=final_denoise)[-1]
    # KDPM2's times are rounded to single precision there.
    close(end, golden[f"{name}/final_f64"], rtol=1e-5 if name == "kdpm2_eps" else 1e-9)
    if row["expected_sum"] is not None:  # of single precision
        assert np.abs(end).sum() == pytest.approx(row["expected_sum"], rel=2e-5, abs=1e-2)
