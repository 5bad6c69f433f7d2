"""The parameters of a run in a safetensors file: the arrays, their names, the metadata; mistakes."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from flax import traverse_util

import diffusers_fn as dfn
from configs import ddpm_toy2d
from diffusers_fn.from_config.defaults import customise
from diffusers_fn.pretrained.safetensors_file import open_safetensors
from experiments import states
from experiments.checkpoints import Checkpoints
from experiments.init_from import load_params
from experiments.workdir import open_workdir


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """(folder, state) of a run with a checkpoint at step 7, whose average differs from its parameters."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    backbone = {"name": "mlp", "hidden_size": 8, "depth": 1}
    config = customise(ddpm_toy2d.get_config(), backbone=backbone, training={"ema_stds": (0.05,)})
    open_workdir(folder, config, create=True)
    state = states.new_state(config, dfn.build(config).init, jax.random.key(5), None)
    averages = dataclasses.replace(
        state.averages, trees=[jax.tree.map(lambda leaf: leaf - 2, tree) for tree in state.averages.trees]
    )
    state = dataclasses.replace(state, ema=jax.tree.map(lambda leaf: leaf + 1, state.params), averages=averages)
    checkpoints = Checkpoints(folder)
    checkpoints.save(7, state)
    checkpoints.close()
    return folder, state


@pytest.mark.parametrize("which", ["ema", "raw", "ema:0.05"])
def test_the_file_holds_the_parameters_by_path(run, command, tmp_path, which):
    workdir, state = run
    output = tmp_path / "net.safetensors"
    printed = command("export_params", f"--workdir={workdir}", f"--params={which}", f"--output={output}")
    assert f"of step 7 in {output}" in printed
    expected = {"ema": state.ema, "raw": state.params, "ema:0.05": state.averages.trees[0]}[which]
    flat = traverse_util.flatten_dict(expected, sep="/")
    stored = open_safetensors(output)
    assert set(stored) == set(flat)
    for name, value in flat.items():
        np.testing.assert_array_equal(stored[name].read(), value)
    content = output.read_bytes()
    metadata = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])["__metadata__"]
    assert (metadata["step"], metadata["params"]) == ("7", which)
    assert json.loads(metadata["config"])["backbone"]["hidden_size"] == 8
    jax.tree.map(np.testing.assert_array_equal, load_params(str(output))[0], expected)


def test_mistakes_are_named(run, command, tmp_path):
    output = tmp_path / "net.safetensors"
    assert "give --workdir=FOLDER" in command("export_params", f"--output={output}", code=1)
    assert "holds no run" in command("export_params", f"--workdir={tmp_path}", f"--output={output}", code=1)
    output.write_text("precious")
    assert "exists: give another file" in command("export_params", f"--workdir={run[0]}", f"--output={output}", code=1)
    assert output.read_text() == "precious"
