"""Every family on every network of the references that is stored here: read, checked, and written back bit by bit."""

import itertools
import json
import pathlib

import pytest

from diffusers_fn import pretrained
from diffusers_fn.pretrained.load import find_family
from diffusers_fn.pretrained.safetensors_file import open_safetensors

GOLDEN = pathlib.Path(__file__).parents[1] / "golden_nets"
NETS = sorted(path.parent.name for path in GOLDEN.glob("*/weights.safetensors") if path.parent.name != "unet2d_ddpm")
# Which family a stored network belongs to, by the longest of these that its name begins with.
PREFIXES = {
    "clip_text": "clip_text",
    "clip_text_projected": "clip_text_projected",
    "edm": "edm",
    "guided_unet": "guided_unet",
    "improved_unet": "guided_unet",
    "unet2dcond": "unet2d_condition",
}


def family_of(net):
    prefix = max((prefix for prefix in PREFIXES if net.startswith(prefix)), key=len, default=None)
    assert prefix, f"{net} has no line in PREFIXES"
    return pretrained.FAMILIES[PREFIXES[prefix]]


ONE_EACH = {family_of(net).name: net for net in reversed(NETS)}


def test_every_family_has_a_network_here():
    assert set(ONE_EACH) == set(pretrained.FAMILIES)


@pytest.mark.parametrize("net", NETS)
def test_a_published_network_comes_back_bit_by_bit(net, tmp_path):
    family = family_of(net)
    module, params = pretrained.load(GOLDEN / net, family.name)
    assert family.from_config(json.loads(json.dumps(family.to_config(module)))) == module
    assert isinstance(hash(module), int)

    pretrained.save(tmp_path / "saved", module, params, family)
    before = open_safetensors(GOLDEN / net / "weights.safetensors")
    after = open_safetensors(tmp_path / "saved" / family.weights_name)
    assert list(after) == list(before)
    for name, tensor in before.items():
        assert (after[name].shape, after[name].dtype) == (tensor.shape, tensor.dtype), name
        assert after[name].read().tobytes() == tensor.read().tobytes(), name
    config = json.loads((tmp_path / "saved" / "config.json").read_text())
    assert find_family(None, config) is family
    assert family.from_config(config) == module


@pytest.mark.parametrize("name", ONE_EACH)
def test_one_renamed_tensor_is_named(name):
    family, folder = pretrained.FAMILIES[name], GOLDEN / ONE_EACH[name]
    module = family.from_config(json.loads((folder / "config.json").read_text()))
    tensors = open_safetensors(folder / "weights.safetensors")
    old = sorted(tensors)[len(tensors) // 2]
    tensors[f"{old}_"] = tensors.pop(old)
    with pytest.raises(ValueError, match=r"missing \(1\): .*\n.*unexpected \(1\)") as error:
        pretrained.from_torch(tensors, module, family)
    assert old in str(error.value)


@pytest.mark.parametrize(("name", "other"), itertools.permutations(ONE_EACH, 2))
def test_the_config_of_another_family_is_refused(name, other):
    with pytest.raises(ValueError, match=f"'{other}'|not those of the network"):
        pretrained.load(GOLDEN / ONE_EACH[name], other)
