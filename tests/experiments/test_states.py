"""Which parameters of a run are chosen: the EMA, the last ones, averages of any length reconstructed after the run."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import diffusers_fn as dfn
from diffusers_fn.training import averages
from experiments import states


def config(**training):
    return dfn.customise(dfn.default_config(), training={"ema_stds": (0.05, 0.1), **training})


def walk(workdir, num_updates, every):
    """A state whose parameters are n^0.5 after update n, and its stored averages."""
    chosen = config(ema_snapshot_every=every)
    keep = states.make_averaging(chosen)

    def params(n):
        return {"w": jnp.asarray(n, jnp.float32) ** 0.5}

    state = dfn.training.make_train_state(params(0), states.make_optimizer(chosen), None, keep)
    update = jax.jit(keep.update)
    held = state.averages
    for n in range(1, num_updates + 1):
        held = update(held, params(n))
        state = dfn.training.TrainState(jnp.array(n), params(n), params(0), None, None, held, jnp.array(n))
        if n % every == 0:
            states.save_snapshot(workdir, n, state)
    return chosen, state


def test_an_average_of_another_length_is_the_power_function_mean(tmp_path):
    """The mean of sqrt(n) with weights (n/N)^(gamma+1) - ((n-1)/N)^(gamma+1), in float64."""
    chosen, state = walk(tmp_path, 400, 40)
    for std, tolerance in ((0.05, 2e-6), (0.1, 2e-6), (0.07, 2e-4), (0.15, 2e-3)):
        got = float(states.choose_params(chosen, tmp_path, state, f"ema:{std}")["w"])
        weights = np.diff((np.arange(401) / 400) ** (averages.power_function_gamma(std) + 1))
        np.testing.assert_allclose(got, weights @ np.sqrt(np.arange(1, 401)), rtol=tolerance)
    assert float(states.choose_params(chosen, tmp_path, state, "raw")["w"]) == 20.0
    assert float(states.choose_params(chosen, tmp_path, state, "ema")["w"]) == 0.0


def test_what_cannot_be_chosen_is_named(tmp_path):
    chosen, state = walk(tmp_path, 10, 20)
    with pytest.raises(ValueError, match=r"has the averages ema:0\.05, ema:0\.1; others [\s\S]*ema_snapshot_every"):
        states.choose_params(chosen, tmp_path, state, "ema:0.07")
    for which in ("mean", "ema:", "raw:0.1", "ema:long"):
        with pytest.raises(ValueError, match="--params must be ema, raw or ema:STD"):
            states.choose_params(chosen, tmp_path, state, which)
    with pytest.raises(ValueError, match=r"train with config\.training\.ema_stds"):
        states.choose_params(config(ema_stds=()), tmp_path, state, "ema:0.07")
    with pytest.raises(ValueError, match=r"ema_snapshot_every stores the averages"):
        states.make_averaging(config(ema_stds=(), ema_snapshot_every=5))
    with pytest.raises(ValueError, match=r"training\.ema_warmup"):
        states.make_ema_schedule(config(ema_warmup="slow"))


def test_a_length_out_of_reach_is_refused(tmp_path):
    """With ten snapshots, 0.01 is 48% off and 0.25 14%; the weights of 0.15 are 2% off."""
    chosen, state = walk(tmp_path, 400, 40)
    for std, off, nearest in ((0.01, 48, 0.03), (0.25, 14, 0.23)):
        with pytest.raises(ValueError, match=rf"{off}% off.* 9 earlier steps.*nearest within reach is ema:{nearest}"):
            states.choose_params(chosen, tmp_path, state, f"ema:{std}")
    with pytest.raises(ValueError, match="std must lie in"):
        states.choose_params(chosen, tmp_path, state, "ema:0.5")
    of_three = averages.averaging(*map(averages.power_function, (0.05, 0.1, 0.15))).init(state.params)
    state = dataclasses.replace(state, averages=dataclasses.replace(of_three, count=state.averages.count))
    with pytest.raises(ValueError, match=r"00000040\.npz holds 3 arrays and not 4: remove"):
        states.choose_params(config(ema_stds=(0.05, 0.1, 0.15)), tmp_path, state, "ema:0.07")


def test_the_learning_rate_counts_updates():
    chosen = config(
        learning_rate=1.0, warmup_steps=8, accumulation=4, num_steps=40, lr_schedule="constant", ema_stds=()
    )
    assert [states.learning_rate(chosen, step) for step in (0, 3, 4, 8, 39)] == [0.5, 0.5, 0.75, 1.0, 1.0]
