"""New runs that start from the parameters of other runs or from published weights."""

import dataclasses
import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

import diffusers_fn as dfn
from configs import ddpm_toy2d
from diffusers_fn.from_config.defaults import customise
from diffusers_fn.pretrained.safetensors_file import write_safetensors
from experiments import states
from experiments.checkpoints import Checkpoints
from experiments.init_from import check_new, load_params, prepare, take
from experiments.workdir import open_workdir

GOLDEN = Path(__file__).resolve().parents[1] / "golden_nets"
SMALL = {"hidden_size": 8, "depth": 1}


def config_of(num_classes=None, **backbone):
    return customise(ddpm_toy2d.get_config(), data={"num_classes": num_classes}, backbone={**SMALL, **backbone})


def saved_run(folder, config):
    """A run with a checkpoint at step 7, whose averages differ from its parameters; returns the state."""
    open_workdir(folder, config, create=True)
    model = dfn.build(config)
    state = states.new_state(config, model.init, jax.random.key(5), None)
    state = dataclasses.replace(state, ema=jax.tree.map(lambda leaf: leaf + 1, state.params))
    checkpoints = Checkpoints(folder)
    checkpoints.save(7, state)
    checkpoints.close()
    return state


def flat(tree):
    return {path: np.asarray(leaf) for path, leaf in traverse_util.flatten_dict(tree, sep="/").items()}


def assert_same(one, other):
    assert set(one) == set(other)
    for path in one:
        np.testing.assert_array_equal(one[path], other[path])


def test_a_run_starts_from_the_averaged_or_the_raw_parameters_of_another(tmp_path, capsys):
    config = config_of()
    theirs = saved_run(tmp_path / "old", config)
    model, source = dfn.build(config), str(tmp_path / "old")
    new_state = prepare(config, tmp_path / "new", model.init, source=source)
    assert not (tmp_path / "new").exists()
    state = new_state(model.init, jax.random.key(0), None)
    expected = flat(theirs.ema)
    assert_same(flat(state.params), expected)
    assert_same(flat(state.ema), expected)  # the average starts from the same values
    assert int(state.step) == 0
    assert all(not np.any(leaf) for leaf in jax.tree.leaves(state.opt_state))
    output = capsys.readouterr().out
    assert f"started from the ema parameters of {source} at step 7: {len(expected)} of" in output
    recorded = json.loads((tmp_path / "new" / "init_from.json").read_text())
    assert recorded["source"] == source
    assert sorted(recorded["paths"]) == sorted(expected)
    assert_same(flat(load_params(source, "raw")[0]), flat(theirs.params))


def test_a_class_table_of_another_size_keeps_its_initialisation_and_is_listed(tmp_path, capsys):
    theirs = saved_run(tmp_path / "old", config_of(num_classes=3))
    config = config_of(num_classes=5)
    model, key = dfn.build(config), jax.random.key(0)
    new_state = prepare(config, tmp_path / "new", model.init, source=str(tmp_path / "old"))
    state = new_state(model.init, key, None)
    fresh, old, new = flat(model.init(key)), flat(theirs.ema), flat(state.params)
    (table,) = [path for path in new if old[path].shape != new[path].shape]
    np.testing.assert_allclose(new[table], fresh[table], rtol=1e-6)
    assert_same({path: new[path] for path in new if path != table}, {path: old[path] for path in old if path != table})
    assert f"not taken: {table}, which has shape {list(old[table].shape)} there" in capsys.readouterr().out


def test_what_is_missing_and_left_over_is_listed():
    ours = {"a": jnp.zeros(2), "b": {"kernel": jnp.zeros((2, 3))}}
    taken = take(ours, {"a": np.ones(2), "c": np.ones(1)})
    assert (taken.paths, taken.missing, taken.left_over) == (["a"], ["b/kernel"], ["c"])
    assert taken.params["a"].tolist() == [1, 1]
    assert not taken.params["b"]["kernel"].any()
    with pytest.raises(ValueError, match=r"no parameter agrees .* The network has a, b/kernel; the source x"):
        take(ours, {"x": np.ones(2)})


def test_a_wrapper_around_either_network_is_seen_through():
    net = {"a": jnp.zeros(2), "b": jnp.zeros(3)}
    values = {"a": np.ones(2), "b": np.full(3, 2.0)}
    for ours, theirs in (({"net": net, "table": jnp.zeros(4)}, values), (net, {"net": values, "table": np.ones(4)})):
        taken = take(ours, theirs)
        assert len(taken.paths) == 2
        params = taken.params.get("net", taken.params)
        assert params["b"].tolist() == [2, 2, 2]


@pytest.mark.parametrize("separator", ["/", "."])
def test_a_file_whose_names_are_the_paths(tmp_path, separator):
    params = flat(dfn.build(config_of()).init(jax.random.key(3)))
    named = {path.replace("/", separator): leaf for path, leaf in params.items()}
    with open(tmp_path / "net.safetensors", "wb") as file:
        write_safetensors(file, {name: (leaf.shape, leaf.dtype) for name, leaf in named.items()}, named.items())
    loaded, _ = load_params(str(tmp_path / "net.safetensors"))
    assert_same(flat(loaded), params)
    with pytest.raises(ValueError, match="has one set of parameters"):
        load_params(str(tmp_path / "net.safetensors"), "raw")


def test_published_weights(tmp_path):
    source = tmp_path / "published"
    shutil.copytree(GOLDEN / "unet2d_ddpm", source)
    held = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps({**held, "_class_name": "UNet2DModel"}))
    _, expected = dfn.pretrained.load(source)
    loaded, _ = load_params(str(source))
    fresh = jax.tree.map(jnp.zeros_like, expected)
    taken = take(fresh, loaded)
    assert not taken.missing
    assert not taken.other_shape
    assert not taken.left_over
    assert_same(flat(taken.params), flat(expected))

    with pytest.raises(ValueError, match="--init_from: there is no"):
        load_params(str(tmp_path / "nothing"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=f"--init_from={tmp_path / 'empty'}: "):
        load_params(str(tmp_path / "empty"))


def test_only_new_runs_start_from_another(tmp_path):
    assert check_new(tmp_path / "run", "there")
    saved_run(tmp_path / "run", config_of())
    with pytest.raises(ValueError, match="holds a run that started without --init_from: give a new --workdir"):
        check_new(tmp_path / "run", "there")
    (tmp_path / "run" / "init_from.json").write_text(json.dumps({"source": "there"}))
    assert not check_new(tmp_path / "run", "there")  # the same command again resumes
    with pytest.raises(ValueError, match="started from there"):
        check_new(tmp_path / "run", "elsewhere")


def test_blocks_in_a_scan_start_from_blocks_in_a_loop_and_back():
    fields = {"image_size": 8, "hidden_size": 8, "depth": 2, "num_heads": 2}
    loop, scanned = dfn.backbones.DiT(**fields), dfn.backbones.DiT(scan_blocks=True, **fields)
    x = jnp.zeros((1, 8, 8, 1))
    apart, stacked = (jax.jit(net.init)(jax.random.key(0), x, 0)["params"] for net in (loop, scanned))
    taken = take(stacked, apart)
    assert not taken.missing
    assert_same(flat(taken.params), flat(dfn.backbones.stack_blocks(apart)))
    assert_same(flat(take(apart, {"net": stacked}).params), flat(dfn.backbones.unstack_blocks(stacked)))
