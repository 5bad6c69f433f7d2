"""Objects of the user's own, named "package.module:name" in a config."""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import diffusers_fn as dfn
from diffusers_fn.from_config.defaults import customise, default_config
from experiments import own

MODULE = """
import flax.linen as nn
import diffusers_fn as dfn

class Net(nn.Module):
    width: int = 3
    num_classes: int | None = None

    @nn.compact
    def __call__(self, x, t, cond=None, *, train=False):
        return nn.Dense(x.shape[-1], kernel_init=nn.initializers.zeros)(nn.Dense(self.width)(x))

def loss(settings, inputs):
    return lambda params, key, batch: (3.0 * batch["image"].sum(axis=-1), {})

def solver(levels):
    return dfn.solvers.ddim(levels, 0.0)

number = 3
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with the module `of_mine`, which is not importable yet."""
    (tmp_path / "of_mine.py").write_text(MODULE)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield tmp_path
    sys.modules.pop("of_mine", None)


def mine(**sections):
    names = {
        "backbone": {"name": "of_mine:Net", "width": 5},
        "loss": {"objective": "of_mine:loss"},
        "sampler": {"name": "of_mine:solver", "num_inference_steps": 4},
    }
    return customise(default_config(), data={"shape": (2,)}, **{**names, **sections})


def test_network_loss_and_solver_are_those_that_the_config_names(folder):
    own.add_folder(folder / "config.py")
    config = own.complete(mine())
    model = dfn.build(config, own.tables(config))
    params = model.init(jax.random.key(0))
    assert {layer["kernel"].shape for layer in params.values()} == {(2, 5), (5, 2)}
    loss, _ = model.loss(params, jax.random.key(1), {"image": jnp.array([[1.0, 2.0]])})
    assert loss.tolist() == [9.0]

    theirs = dfn.build(mine(sampler={"name": "ddim", "num_inference_steps": 4}), own.tables(config))
    expected = theirs.sample(params, jax.random.key(2), 3).x0
    np.testing.assert_array_equal(model.sample(params, jax.random.key(2), 3).x0, expected)


def test_a_network_of_ones_own_gets_all_fields_of_its_module(folder):
    own.add_folder(folder / "config.py")
    config = own.complete(mine(backbone={"name": "of_mine:Net"}))
    assert (config.backbone.width, config.backbone.num_classes) == (3, None)  # None: the number of the data's
    assert config.is_locked


@pytest.mark.parametrize("classes", [{}, {"num_classes": 0}])
def test_a_network_of_ones_own_may_have_no_field_for_classes(folder, classes):
    module = MODULE.replace("    num_classes: int | None = None\n", "")
    (folder / "of_mine.py").write_text(module)
    own.add_folder(folder / "config.py")
    config = own.complete(mine(backbone={"name": "of_mine:Net", "width": 5, **classes}))
    params = dfn.build(config, own.tables(config)).init(jax.random.key(0))
    assert params["Dense_1"]["kernel"].shape == (2, 5) or params["Dense_0"]["kernel"].shape == (2, 5)


def test_a_config_file_makes_its_own_package_importable(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", list(sys.path))
    package = tmp_path / "mine_too" / "configs"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (tmp_path / "mine_too" / "__init__.py").touch()
    (tmp_path / "mine_too" / "numbers.py").write_text("seven = 7\n")
    added = own.add_folder(package / "config.py")
    assert added == [str(package), str(tmp_path)]
    assert own.import_name("mine_too.numbers:seven") == 7
    assert sys.path[-2:] == added  # after everything that is installed


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"backbone": {"name": "of_mine:Net2"}}, r"config.backbone.name: 'of_mine:Net2': the module of_mine .* has no"),
        ({"backbone": {"name": "of_mine:number"}}, "which is 3: a linen module class or a BackboneEntry is needed"),
        ({"backbone": {"name": "of_yours:Net"}}, "no module 'of_yours' beside the config file.*PYTHONPATH"),
        ({"backbone": {"name": "of_mine.py:Net"}}, "cannot be imported|no module"),
        ({"backbone": {"name": "of mine:Net"}}, "write 'package.module:name'"),
        (
            {"loss": {"objective": "of_mine:number"}},
            "config.loss.objective is 'of_mine:number', which is 3: a func",
        ),
        ({"sampler": {"guidance": "of_mine:"}}, "config.sampler.guidance: 'of_mine:' is not the name of an object"),
    ],
)
def test_names_that_lead_nowhere_are_explained(folder, change, message):
    own.add_folder(folder / "config.py")
    with pytest.raises(ValueError, match=message):
        own.tables(mine(**change))
