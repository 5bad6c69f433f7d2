"""Other people's runs with several evaluations per step, or with churn, replayed in double precision from our rows.

diffusers (single-step DPM-Solver, KDPM2), k-diffusion, EDM, SiT and the authors of DPM-Solver, on exact denoisers. The
configuration of each run determines our solver.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden_files import exact_denoiser, load, meta
from solver_checks import recorded_denoisers, states

import diffusers_fn as dfn
from diffusers_fn import grids, processes, solvers
from diffusers_fn.processes import Process
from diffusers_fn.solvers import data_prediction, noise_prediction

META = meta("singlestep")
ANALYTIC = load("traj/analytic")


DENOISERS = recorded_denoisers(ANALYTIC)


def close(x, wanted, rtol=1e-9):
    np.testing.assert_allclose(x, wanted, rtol=rtol, atol=rtol * np.abs(wanted).max())


def plan(alpha, sigma, t=None):
    alpha, sigma = np.broadcast_arrays(alpha, sigma)
    return dfn.Level(alpha, sigma, np.zeros(sigma.shape) if t is None else t)


def edm_plan(sigma):
    return plan(1.0, sigma, np.log(sigma) / 4)


# diffusers, step by step.


def in_turn(num_steps, order, lower, zero):
    """The orders of steps where a library runs orders 1, 2, 3 in turn; with `zero` the last is our final denoise."""
    whole, rest = divmod(num_steps, order)
    if not lower:
        return [order] * whole
    if order == 3 and rest == 0:
        orders = [3] * (whole - 1) + [2, 1]
    elif order == 2 and rest == 0:
        orders = [2] * (whole - 1) + [1, 1]
    else:
        orders = [order] * whole + [rest] * (rest > 0)
    if zero:  # 1, 2 becomes 1, 1, and the last of them is the denoise
        orders = orders[:-1] if orders[-1] == 1 else [*orders[:-1], 1]
    return orders


def solver_of(run, golden):
    """Returns (solver, whether the run ends with a denoise)."""
    config, case = run["config"], run["key"].rsplit("/", 1)[0]
    alpha, sigma = golden[f"{case}/a_s_f64"].T
    if run["cls"].startswith("KDPM2"):  # its state is x / alpha; it evaluates at 0, between 0 and 1, 1, ...
        ratio = (sigma / alpha)[::2]
        make = solvers.dpm2_ancestral if "Ancestral" in run["cls"] else solvers.dpm2
        return make(edm_plan(ratio)), True
    form = data_prediction if config.get("algorithm_type", "dpmsolver++").endswith("++") else noise_prediction
    zero = config.get("final_sigmas_type", "zero") == "zero"
    if not zero:
        ratio = golden[f"{case}/sigmas_f64"][-1]
        alpha, sigma = np.append(alpha, 1 / np.hypot(1.0, ratio)), np.append(sigma, ratio / np.hypot(1.0, ratio))
    lower = config.get("lower_order_final", False) or zero or run["N"] % config["solver_order"] > 0
    orders = in_turn(run["N"], config["solver_order"], lower, zero)
    taylor = config.get("solver_type", "midpoint") == "heun"
    return solvers.singlestep(plan(alpha, sigma), orders, form, taylor=taylor, nested=True), zero


RUNS = {run["key"]: run for run in META["runs"]["rows"]}


def at_step_ends(draws, solver, num_stages, *, before=False):
    """The draws per step as draws per row, for steps of num_stages stages."""
    laid = np.zeros((solver.rows.x.shape[0], *draws.shape[1:]))
    rows = laid[(0 if before else num_stages - 1) :: num_stages]
    rows[:] = draws[: rows.shape[0]]
    return laid


@pytest.mark.parametrize("key", RUNS)
def test_runs_of_diffusers(key):
    run, golden = RUNS[key], load("singlestep/runs")
    solver, final_denoise = solver_of(run, golden)
    wanted = golden[f"{key}/traj_f64"]
    draws = None
    if run["noise_key"]:
        draws = at_step_ends(golden[run["noise_key"]], solver, 2)
    ours = states(solver, DENOISERS[run["dist"]], wanted[0], draws)
    ours = ours if final_denoise else ours[:-1]
    close(ours if wanted.shape[0] > 2 else ours[[0, -1]], wanted)


@pytest.mark.parametrize("name", ["dpmpp_2s_heun/20", "kdpm2_karras/20", "dpmpp_3s_midpoint_sigmin/12", "kdpm2_a/10"])
@pytest.mark.usefixtures("x64")
def test_runs_of_diffusers_through_sample(name, replayed_noise):
    run, golden = RUNS[f"{name}/gmm"], load("singlestep/runs")
    solver, final_denoise = solver_of(run, golden)
    wanted = golden[f"{name}/gmm/traj_f64"]
    key, scan = None, jax.lax.scan
    if solver.stochastic:
        key, scan = jax.random.key(0), replayed_noise.scan(at_step_ends(golden[run["noise_key"]], solver, 2))
    emit = lambda step: step.x_next  # noqa: E731
    options = {"emit": emit, "final_denoise": final_denoise, "scan": scan}
    ours = dfn.sample(key, exact_denoiser("gmm"), solver, jnp.asarray(wanted[0]), **options)
    close(ours.trace, wanted[1:], rtol=1e-8)


@pytest.mark.parametrize("name", ["dpmpp_2s_heun/20", "dpmpp_3s_heun/20", "dpm_2s_heun_sigmin/20", "kdpm2/20"])
def test_runs_of_diffusers_in_single_precision(name):
    run, golden = RUNS[f"{name}/gmm"], load("singlestep/runs")
    solver, final_denoise = solver_of(run, golden)
    wanted = golden[f"{name}/gmm/traj_f64"]
    x = jnp.asarray(wanted[0], jnp.float32)
    ours = dfn.sample(None, exact_denoiser("gmm"), solver, x, final_denoise=final_denoise).x0
    assert ours.dtype == jnp.float32
    # A few roundings, 6e-8, of numbers of order 1 a step, and nothing that grows.
    np.testing.assert_allclose(ours, wanted[-1], atol=3e-6)


# That library asks the network before the noise of churn is added, and reads its output with the level after it. It is
# not offered, as state and level do not belong together. Written as columns:


def churned_after_asking(sigma, hat, after, of_x, of_out):
    """x^ = x + sqrt(hat^2 - sigma^2) z,  D = of_x x^ + of_out F(x),  x' = x^ + (after - hat) (x^ - D) / hat.

    Our x0_hat is of_out F(x); the other columns of the row give the parts of x and z.
    """
    h = (after - hat) / hat
    gain = 1 + h * (1 - of_x)
    levels = plan(1.0, np.array([sigma, after]))
    return solvers.linear_solver(levels, x=[gain], x0=-h, eps=0.0, noise=gain * np.sqrt(hat**2 - sigma**2))


@pytest.mark.parametrize(("name", "i"), [("euler_churn_v", 4), ("euler_churn_v", 9), ("edm_euler_churn", 4)])
def test_a_churn_that_is_not_offered(name, i):
    golden = load("singlestep/steps")
    if name.startswith("edm"):
        sigmas = np.append(grids.karras(10).sigma, 0.0)
    else:
        table = dfn.make_noise_schedule(dfn.scaled_linear_betas(1000, 0.00085, 0.012))
        ratio = table.sqrt_one_minus_alphas_cumprod / table.sqrt_alphas_cumprod
        sigmas = np.append(np.interp(np.linspace(999.0, 0.0, 10), np.arange(1000), ratio), 0.0)
    sigma, after, hat = sigmas[i], sigmas[i + 1], 1.3 * sigmas[i]
    if name.startswith("edm"):  # c_skip and c_out of the level after the noise
        of_x, of_out = 0.25 / (0.25 + hat**2), 0.5 * hat / np.hypot(0.5, hat)
    else:  # of the level before it
        of_x, of_out = 1 / (1 + sigma**2), -sigma / np.hypot(1.0, sigma)
    solver = churned_after_asking(sigma, hat, max(after, 1e-12), of_x, of_out)
    network = lambda x, level: (of_out * golden["model_output"], 0.0)  # noqa: E731
    ours = states(solver, network, golden["xt"], golden["noise"][None].repeat(2, axis=0))[1]
    close(ours, golden[f"{name}/i{i}/prev_f64"], rtol=1e-9)


# k-diffusion, which appends sigma = 0 to its levels.

K_SIGMAS = {
    "karras20_rho5": lambda: grids.karras(20, 0.02, 80.0, 5.0).sigma,
    "exp10": lambda: grids.exponential(10, 0.0292, 14.6146).sigma,
    "vp10": lambda: (lambda level: level.sigma / level.alpha)(processes.vp(0.1, 20.0)(np.linspace(1.0, 1e-3, 10))),
}
CHURN = {"s_churn": 4.0, "s_min": 0.05, "s_max": 10.0, "s_noise": 1.003}
K_SAMPLERS = {
    "heun": solvers.heun,
    "dpm_2": solvers.dpm2,
    "dpm_2_a": solvers.dpm2_ancestral,
    "dpm_2_churn": lambda levels: solvers.dpm2_churn(levels, s_churn=4.0),
    "dpmpp_2s_a": solvers.dpmpp_2s_ancestral,
    "dpmpp_2s_a_eta0": lambda levels: solvers.dpmpp_2s_ancestral(levels, 0),
    "dpmpp_sde": solvers.dpmpp_sde,
    "dpmpp_sde_eta0": lambda levels: solvers.dpmpp_sde(levels, np.array(0.0)),
    "euler_a_eta0.5": lambda levels: solvers.euler_ancestral(levels, 0.5),
    "euler_churn": lambda levels: solvers.euler_churn(levels, **CHURN),
    "heun_churn": lambda levels: solvers.heun_churn(levels, **CHURN),
}
EVERY_EVALUATION = ("dpmpp_sde", "dpmpp_sde_eta0")  # draws noise there, not once per step


@pytest.mark.parametrize("index", [i for i, key in enumerate(META["kdiffusion"]["keys"]) if "dpm_fast" not in key])
def test_samples_of_k_diffusion(index):
    golden = load("singlestep/kdiffusion")
    _, dist, grid, name = META["kdiffusion"]["keys"][index].split("/")
    sigma = K_SIGMAS[grid]()
    solver = K_SAMPLERS[name](edm_plan(sigma))
    num_stages = 1 if name in (*EVERY_EVALUATION, "euler_a_eta0.5", "euler_churn") else 2
    draws = golden["noise_bank"]
    noise, churn = (at_step_ends(draws, solver, num_stages, before=before) for before in (False, True))
    ours = states(solver, DENOISERS[dist], golden["xT_unit"] * sigma[0], noise, churn)[-1]
    close(ours, golden["samples"][index])


@pytest.mark.parametrize("index", [i for i, key in enumerate(META["kdiffusion"]["keys"]) if "dpm_fast" in key])
def test_samples_of_dpm_fast(index):
    """With eta = 1, which clamps each step at the last level; it draws once per step and ends without a denoise."""
    golden = load("singlestep/kdiffusion")
    _, dist, _, num_evaluations = META["kdiffusion"]["keys"][index].split("/")
    orders = solvers.fast_orders(int(num_evaluations))
    sigma = np.geomspace(14.6146, 0.0292, len(orders) + 1)
    noise = np.zeros((sum(orders) + 1, *golden["xT_unit"].shape))
    noise[np.cumsum(orders) - 1] = golden["noise_bank"][: len(orders)]
    for process in (None, processes.edm()):
        solver = solvers.dpm_solver(edm_plan(sigma), orders, process=process, eta=1.0)
        ours = states(solver, DENOISERS[dist], golden["xT_unit"] * sigma[0], noise)[-2]
        close(ours, golden["samples"][index])


# The authors of DPM-Solver: from t = 1 to t = 1e-3, whose level is the last one of the plan.


def authors_path(schedule):
    """(t -> Level, log SNR -> t); their discrete tables are at 1/1000, 2/1000, ..., log(alpha) linear in between."""
    if schedule == "linear":
        return processes.vp(), processes.vp().time
    table = {"lin": dfn.linear_betas(1000), "sd": dfn.scaled_linear_betas(1000, 0.00085, 0.012)}[schedule]
    process = processes.tabulated(dfn.make_noise_schedule(table), processes.linear_log_alpha)
    return (lambda t: process(np.clip(1000 * t - 1, 0.0, None))), (lambda log_snr: (process.time(log_snr) + 1) / 1000)


def authors_times(skip, path, time, first, last, num_hops):
    if skip == "time_uniform":
        return np.linspace(first, last, num_hops + 1)
    if skip == "time_quadratic":
        return np.linspace(first**0.5, last**0.5, num_hops + 1) ** 2
    ends = dfn.log_snr(path(np.array([first, last])))
    return np.clip(time(np.linspace(*ends, num_hops + 1)), last, first)


AUTHORS = META["authors"]["keys"]


@pytest.mark.parametrize("index", range(len(AUTHORS)))
def test_samples_of_dpm_solver(index):
    """Steps end at levels of their grid, or of one with a level per step; the levels inside are of the same kind."""
    _, schedule, dist, algorithm, skip, method, order, kind, _, num_steps = AUTHORS[index].split("/")
    order, num_steps = int(order[1:]), int(num_steps)
    path, time = authors_path(schedule)
    orders = solvers.fast_orders(num_steps, order)
    if method == "singlestep_fixed":
        orders = [order] * (num_steps // order)
    if skip == "logSNR":
        ends = authors_times(skip, path, time, 1.0, 1e-3, len(orders))
    else:
        ends = authors_times(skip, path, time, 1.0, 1e-3, sum(orders))[np.cumsum([0, *orders])]
    inside = [authors_times(skip, path, time, *step, p)[:-1] for *step, p in zip(ends[:-1], ends[1:], orders)]
    levels = path(np.append(np.concatenate(inside), ends[-1]))
    form = data_prediction if algorithm.endswith("++") else noise_prediction
    solver = solvers.singlestep(levels, orders, form, taylor=kind == "taylor")
    golden = load("singlestep/authors")
    close(states(solver, DENOISERS[dist], golden["xT"])[-2], golden["samples"][index])


# EDM: algorithm 2, and the general sampler with any sigma(t), s(t) and second stage.


@pytest.mark.parametrize("index", [i for i, key in enumerate(META["edm"]["keys"]) if key.startswith("edm_sampler")])
def test_samples_of_edm(index):
    golden = load("singlestep/edm")
    _, dist, _, num_steps = META["edm"]["keys"][index].split("/")
    levels = grids.karras(int(num_steps))
    solver = solvers.heun_churn(levels, np.array(0.0))
    no_draws = np.zeros((solver.rows.x.shape[0], 1, 1, 1, 1))
    x = golden["latents"] * levels.sigma[0]
    for same in (solver, solvers.heun(levels)):
        close(states(same, DENOISERS[dist], x, churn=no_draws)[-1], golden["samples"][index])


def edm_process(schedule, scaling, sigma_min, sigma_max):
    """The process sigma(t), s(t): x = s x0 + s sigma eps, for t > 0."""
    slope = 2 * (np.log1p(sigma_min**2) / 1e-3 - np.log1p(sigma_max**2)) / (1e-3 - 1)
    start = np.log1p(sigma_max**2) - 0.5 * slope
    sigma, d_sigma, time = {
        "vp": (
            lambda t: np.sqrt(np.expm1(0.5 * slope * t**2 + start * t)),
            lambda t: 0.5 * (start + slope * t) * (sigma(t) + 1 / sigma(t)),
            lambda s: (np.sqrt(start**2 + 2 * slope * np.log1p(s**2)) - start) / slope,
        ),
        "ve": (np.sqrt, lambda t: 0.5 / np.sqrt(t), np.square),
        "linear": (lambda t: t, np.ones_like, lambda s: s),
    }[schedule]
    scale = {"vp": lambda t: 1 / np.hypot(1.0, sigma(t)), "none": np.ones_like}[scaling]

    def rates(t):
        f = -sigma(t) * d_sigma(t) * scale(t) ** 2 if scaling == "vp" else 0.0 * t
        return f, 2 * scale(t) ** 2 * sigma(t) * d_sigma(t)

    level = lambda t: dfn.Level(scale(t), scale(t) * sigma(t), t)  # noqa: E731
    return Process(level, lambda log_snr: time(np.exp(-0.5 * log_snr)), rates, 0.0, np.inf)


def edm_sigmas(discretization, num):
    """(sigma [N], sigma_min, sigma_max)"""
    steps = np.linspace(0.0, 1.0, num)
    if discretization == "vp":
        level = processes.vp(0.1, 20.0)(np.array([1e-3, 1.0]))
        sigma_min, sigma_max = level.sigma / level.alpha
        process = edm_process("vp", "none", sigma_min, sigma_max)
        return process(1 + steps * (1e-3 - 1)).sigma, sigma_min, sigma_max
    if discretization == "ve":
        return np.geomspace(100.0, 0.02, num), 0.02, 100.0
    if discretization == "edm":
        return grids.karras(num).sigma, 0.002, 80.0
    bar = lambda j: np.sin(0.5 * np.pi * j / 1000 / 1.008) ** 2  # noqa: E731
    u = np.zeros(1001)
    for j in range(1000, 0, -1):
        u[j - 1] = np.sqrt((u[j] ** 2 + 1) / max(bar(j - 1) / bar(j), 0.001) - 1)
    u = u[(u >= 0.002) & (u <= 81)]
    return u[np.round((u.size - 1) * steps).astype(int)], 0.002, 81.0


@pytest.mark.parametrize(
    "index", [i for i, key in enumerate(META["edm"]["keys"]) if key.endswith(("a1/12", "a0.5/12"))]
)
def test_samples_of_the_general_sampler_of_edm(index):
    """Up to the last level by our table; the last step, Euler's to t = 0 there and x0_hat here, by hand."""
    golden = load("singlestep/edm")
    _, dist, name, num_steps = META["edm"]["keys"][index].split("/")
    method, discretization, schedule, scaling, fraction = name.split("_")
    sigma, sigma_min, sigma_max = edm_sigmas(discretization, int(num_steps))
    process = edm_process(schedule, scaling, sigma_min, sigma_max)
    t = process.time(-2 * np.log(sigma))
    tableau = solvers.EULER if method == "euler" else solvers.two_stage(float(fraction[1:]))
    solver = solvers.runge_kutta_in_time(process, t, tableau)
    level = solver.rows.level
    x = states(solver, DENOISERS[dist], golden["latents"] * level.sigma[0])[-2]
    x0, eps = DENOISERS[dist](x, level[-1])
    f, g2 = process.rates(t[-1])
    slope = x0 * f * level.alpha[-1] + eps * (f * level.sigma[-1] + g2 / (2 * level.sigma[-1]))
    # Their table of iDDPM sigmas is of single precision.
    close(x - t[-1] * slope, golden["samples"][index], rtol=3e-4 if discretization == "iddpm" else 1e-9)


def test_a_churned_sample_of_edm():
    golden = load("singlestep/edm")
    index = META["edm"]["keys"].index("ablation/gauss/heun_edm_linear_none_churn/12")
    levels = grids.karras(12)
    solver = solvers.heun_churn(levels, 30.0, 0.05, 50.0, 1.003)
    churn = at_step_ends(golden["noise_bank"], solver, 2, before=True)
    ours = states(solver, DENOISERS["gauss"], golden["latents"] * levels.sigma[0], churn=churn)[-1]
    close(ours, golden["samples"][index])


# SiT: fixed-step methods of torchdiffeq in its own time, from noise to data.

SIT_PROCESSES = {"Linear": processes.flow(), "GVP": processes.trigonometric(), "VP": processes.vp(0.1, 20.0)}
SIT_METHODS = {
    "euler": solvers.EULER,
    "heun2": solvers.HEUN,
    "midpoint": solvers.MIDPOINT,
    "rk4": solvers.THREE_EIGHTHS,
}


def by_hand(tableau, process, denoise, t, t_next, x):
    """One step of a tableau in NumPy, which may end at clean data, where no plan of ours goes."""
    slopes = []
    for node, weights in zip(tableau.nodes, tableau.stages):
        now = t + node * (t_next - t)
        level, (f, g2) = process(now), process.rates(now)
        x0, eps = denoise(x + (t_next - t) * sum(w * d for w, d in zip(weights, slopes)), level)
        with np.errstate(divide="ignore", invalid="ignore"):
            d_sigma = f * level.sigma + np.where(level.sigma == 0, process_slope(process), g2 / (2 * level.sigma))
        slopes.append(x0 * f * level.alpha + eps * d_sigma)
    return x + (t_next - t) * sum(w * d for w, d in zip(tableau.weights, slopes))


def process_slope(process):
    """d(sigma)/dt at t = 0, of flow 1 and of the trigonometric process pi / 2."""
    return process(1e-9).sigma / 1e-9


@pytest.mark.parametrize("index", range(len(META["sit"]["keys"])))
def test_samples_of_sit(index):
    golden = load("singlestep/sit")
    _, path, _, dist, method, num_times = META["sit"]["keys"][index].split("/")
    process, tableau = SIT_PROCESSES[path], SIT_METHODS[method]
    first, last = (1.0 - end for end in META["sit"]["ends"][index])
    t = np.linspace(first, last, int(num_times))
    plan = t if t[-1] > 0 else t[:-1]
    solver = solvers.runge_kutta_in_time(process, plan, tableau)
    x = states(solver, DENOISERS[dist], golden["xT"])[-2]
    if t[-1] == 0:
        x = by_hand(tableau, process, DENOISERS[dist], t[-2], t[-1], x)
    # The slope at pure noise is taken 1e-8 of a step aside.
    close(x, golden["samples"][index], rtol=1e-7)
    if path == "Linear":  # where time runs along the chords
        same = solvers.runge_kutta(process(plan), tableau)
        close(states(same, DENOISERS[dist], golden["xT"])[-2], states(solver, DENOISERS[dist], golden["xT"])[-2], 1e-7)
