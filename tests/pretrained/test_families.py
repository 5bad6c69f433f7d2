"""Every family with every stored network of the references: loaded, checked, and saved again bit for bit."""

import itertools
import json
import pathlib

import pytest
import unet_cases

from diffusers_fn import pretrained
from diffusers_fn.pretrained.load import find_family
from diffusers_fn.pretrained.safetensors_file import open_safetensors, write_safetensors

GOLDEN = pathlib.Path(__file__).parents[1] / "golden_nets"
# A stored network's family has the longest of these prefixes of its name: that of the family, or another one.
PREFIXES = {name: name for name in pretrained.FAMILIES}
PREFIXES |= {"improved_unet": "guided_unet", "unet2dcond": "unet2d_condition", "vae_kl": "autoencoder_kl"}
# The networks stored as files, and one of which only tensor names and shapes are stored.
NETS = sorted([path.parent.name for path in GOLDEN.glob("*/weights.safetensors")] + ["guided_superres"])


def family_of(net):
    prefix = max((prefix for prefix in PREFIXES if net.startswith(prefix)), key=len, default=None)
    assert prefix, f"the name of {net} must begin with that of its family, or with a key of PREFIXES"
    return pretrained.FAMILIES[PREFIXES[prefix]]


ONE_EACH = {family_of(net).name: net for net in reversed(NETS)}


@pytest.fixture(scope="module")
def folder_of(tmp_path_factory):
    """The folder of each stored network, by name."""
    folder = tmp_path_factory.mktemp("guided_superres")
    tensors = unet_cases.state_dict("guided_superres")
    with open(folder / "weights.safetensors", "wb") as file:
        specs = {name: (tensor.shape, tensor.dtype) for name, tensor in tensors.items()}
        write_safetensors(file, specs, tensors.items())
    (folder / "config.json").write_text(json.dumps(unet_cases.CASES["guided_superres"]["config"]))
    return {net: GOLDEN / net for net in NETS} | {"guided_superres": folder}


def test_every_family_has_a_stored_network():
    assert set(ONE_EACH) == set(pretrained.FAMILIES)


@pytest.mark.parametrize("net", NETS)
def test_a_published_network_is_loaded_and_saved_bit_for_bit(net, folder_of, tmp_path):
    family = family_of(net)
    module, params = pretrained.load(folder_of[net], family.name)
    assert family.from_config(json.loads(json.dumps(family.to_config(module)))) == module
    assert isinstance(hash(module), int)

    pretrained.save(tmp_path / "saved", module, params, family)
    before = open_safetensors(folder_of[net] / "weights.safetensors")
    after = open_safetensors(tmp_path / "saved" / family.weights_name)
    assert list(after) == list(before)
    for name, tensor in before.items():
        assert (after[name].shape, after[name].dtype) == (tensor.shape, tensor.dtype), name
        assert after[name].read().tobytes() == tensor.read().tobytes(), name
    config = json.loads((tmp_path / "saved" / "config.json").read_text())
    assert find_family(None, config) is family
    assert family.from_config(config) == module


@pytest.mark.parametrize("name", ONE_EACH)
def test_the_error_for_a_renamed_tensor_names_it(name, folder_of):
    family, folder = pretrained.FAMILIES[name], folder_of[ONE_EACH[name]]
    module = family.from_config(json.loads((folder / "config.json").read_text()))
    tensors = open_safetensors(folder / "weights.safetensors")
    old = sorted(tensors)[len(tensors) // 2]
    tensors[f"{old}_"] = tensors.pop(old)
    with pytest.raises(ValueError, match=r"missing \(1\): .*\n.*unexpected \(1\)") as error:
        pretrained.from_torch(tensors, module, family)
    assert old in str(error.value)


@pytest.mark.parametrize(("name", "other"), list(itertools.permutations(ONE_EACH, 2)))
def test_the_config_of_another_family_is_refused(name, other, folder_of):
    with pytest.raises(ValueError, match=f"'{other}'|not those of the network"):
        pretrained.load(folder_of[ONE_EACH[name]], other)
