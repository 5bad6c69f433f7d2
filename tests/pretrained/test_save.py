"""Parameters to checkpoints: saved bit for bit as loaded, completely or not at all."""

import json
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from diffusers_fn import pretrained
from diffusers_fn.backbones import DiT, SongUNet, UNet, UViT
from diffusers_fn.pretrained.family import different_fields
from diffusers_fn.pretrained.safetensors_file import open_safetensors


def contents(path):
    found = {name: tensor.read() for name, tensor in open_safetensors(path).items()}
    return {name: (array.shape, array.dtype, array.tobytes()) for name, array in found.items()}


@pytest.mark.parametrize("dtype", [np.float16, jnp.bfloat16, np.float32])
def test_a_loaded_network_is_saved_byte_for_byte(net, tmp_path, dtype):
    tensors = {name: value.astype(dtype) for name, value in net.tensors.items()}
    folder = net.write(tensors, {"_class_name": "NetModel", "width": 8})
    module, params = pretrained.load(folder, net.family)
    pretrained.save(tmp_path / "new" / "saved", module, params, net.family)
    saved = tmp_path / "new" / "saved"
    assert sorted(path.name for path in saved.iterdir()) == ["config.json", "model.safetensors"]
    assert contents(saved / "model.safetensors") == contents(folder / "model.safetensors")
    assert json.loads((saved / "config.json").read_text()) == {"_class_name": "NetModel", "width": 8}
    again, params_again = pretrained.load(saved, net.family)
    assert again == module
    assert jax.tree.all(jax.tree.map(np.array_equal, params, params_again))


def test_the_file_has_torch_metadata_and_the_name_that_the_reference_looks_for(net, tmp_path):
    params = pretrained.from_torch(net.tensors, net.module, net.family)
    pretrained.save(tmp_path / "net", net.module, params, net.family._replace(weights_name="unet.safetensors"))
    assert b'{"__metadata__":{"format":"pt"}' in (tmp_path / "net" / "unet.safetensors").read_bytes()[:50]


def test_sharded_parameters_give_the_same_tensors(net):
    mesh = Mesh(np.array(jax.devices()[:2]), ("model",))

    def last_axis(path, shape):
        return NamedSharding(mesh, PartitionSpec(*[None] * (len(shape) - 1), "model"))

    params = pretrained.from_torch(net.tensors, net.module, net.family, sharding=last_axis)
    tensors = pretrained.to_torch(params, net.module, net.family)
    assert set(tensors) == set(net.tensors)
    for name, array in tensors.items():
        assert array.flags.c_contiguous
        assert (array.shape, array.tobytes()) == (net.tensors[name].shape, net.tensors[name].tobytes())


def test_parameters_of_another_network_are_refused_and_nothing_is_written(net, tmp_path):
    params = pretrained.from_torch(net.tensors, net.module, net.family)
    params["conv"]["kernel"] = params["conv"]["kernel"][..., :4]
    params["norm"] = {"gain": params["norm"]["scale"]}
    with pytest.raises(ValueError, match="not the parameters of this module") as error:
        pretrained.save(tmp_path / "net", net.module, params, net.family)
    assert str(error.value).splitlines()[1:] == [
        "  missing (2): norm/bias, norm/scale",
        "  unexpected (1): norm/gain",
        "  of the wrong shape (1): conv/kernel [1, 3, 5, 4] instead of [1, 3, 5, 8]",
    ]
    assert list(tmp_path.iterdir()) == []


SMALL = {
    "out_channels": 3,
    "image_size": 8,
    "channels": 32,
    "channel_multipliers": (1, 2),
    "num_res_blocks": 1,
    "attention_resolutions": (4,),
}
GUIDED = {"norm_eps": 1e-5, "time_cos_first": True, "time_freq_shift": 0, "downsample_padding": (1, 1)}


@pytest.mark.parametrize(
    ("module", "family", "message"),
    [
        (UNet(**SMALL), "guided_unet", "norm_eps is 1e-06, not 1e-05; time_cos_first is False, not True"),
        (UNet(**SMALL, **GUIDED, norm_groups=8), "guided_unet", "norm_groups is 8, not 32"),
        (DiT(num_classes=3), "dit_diffusers", "set in_channels of this DiT: config.json stores it"),
        (DiT(in_channels=4, num_classes=3, gelu_approximate=False), "dit", "gelu_approximate is False, not True"),
        (UViT(in_channels=3, null_class=False, learned_variance=True), "uvit", "out_channels is 6, not 3"),
        (SongUNet(out_channels=3, mid_divisor=1.0), "edm", "mid_divisor is 1.0, not 1.41"),
    ],
)
def test_a_network_that_the_config_cannot_describe_is_refused(module, family, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        pretrained.save(tmp_path / "net", module, {}, family)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("module", "other"),
    [
        ({"num_heads": None}, {"num_heads": 1}),
        ({"head_dim": 16, "num_heads": None}, {"head_dim": 16, "num_heads": 4}),
        ({"num_classes": 3, "null_class": True}, {"num_classes": 4, "null_class": False}),
        ({"dropout": 0.1, "remat": True, "dtype": jnp.bfloat16}, {}),
    ],
)
def test_fields_that_do_not_change_the_network_are_not_different(module, other):
    assert different_fields(UNet(**SMALL, **module), UNet(**SMALL, **other)) == []


def test_a_checkpoint_must_be_a_new_folder(net, tmp_path):
    params = pretrained.from_torch(net.tensors, net.module, net.family)
    (tmp_path / "empty").mkdir()
    pretrained.save(tmp_path / "empty", net.module, params, net.family)
    before = contents(tmp_path / "empty" / "model.safetensors")
    (tmp_path / "file").write_text("")
    for name in ("empty", "file"):
        with pytest.raises(ValueError, match="a checkpoint must be a new folder"):
            pretrained.save(tmp_path / name, net.module, params, net.family)
    assert contents(tmp_path / "empty" / "model.safetensors") == before


def test_the_rest_of_an_interrupted_save_does_no_harm(net, tmp_path):
    params = pretrained.from_torch(net.tensors, net.module, net.family)
    left = tmp_path / f".net.{os.getpid()}.tmp"
    left.mkdir()
    (left / "model.safetensors").write_bytes(b"half")
    pretrained.save(tmp_path / "net", net.module, params, net.family)
    assert [path.name for path in tmp_path.iterdir()] == ["net"]


@pytest.mark.parametrize("at", ["os.fsync", "json.dump", "os.replace"])
def test_a_save_that_fails_leaves_nothing(net, tmp_path, monkeypatch, at):
    params = pretrained.from_torch(net.tensors, net.module, net.family)

    def fail(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(at, fail)
    with pytest.raises(OSError, match="No space left"):
        pretrained.save(tmp_path / "net", net.module, params, net.family)
    assert list(tmp_path.iterdir()) == []
