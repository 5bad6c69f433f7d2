"""Checkpoints to parameters: exact if everything fits, otherwise a ValueError and nothing is loaded."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec, SingleDeviceSharding
from pretrained_checks import CONFIG, check_loaded, flat, same_bits

from diffusers_fn import pretrained
from diffusers_fn.pretrained.load import class_names, find_family


def test_every_tensor_becomes_its_parameter_and_the_module_applies_them(net):
    module, params = pretrained.load(net.write(net.tensors, CONFIG), net.family)
    assert module == net.module
    check_loaded(params, net.tensors)
    shapes = jax.eval_shape(module.init, jax.random.key(0), jnp.zeros([1, 2, 3, 5]), 0.0)["params"]
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, shapes)
    # The same network in NumPy with the torch tensors; torch.nn.Conv2d is a correlation along the width.
    x, w = np.random.default_rng(1).standard_normal([1, 2, 3, 5]).astype(np.float32), net.tensors
    padded = np.pad(x, ((0, 0), (0, 0), (1, 1), (0, 0)))
    h = sum(padded[:, :, i : i + 3] @ w["conv.weight"][:, :, 0, i].T for i in range(3)) + w["conv.bias"] + 0.5
    h = h @ w["first.weight"].T + w["first.bias"]
    h = (h - h.mean(-1, keepdims=True)) / np.sqrt(h.var(-1, keepdims=True) + 1e-6) * w["norm.weight"] + w["norm.bias"]
    expected = h @ w["out.weight"].T
    np.testing.assert_allclose(module.apply({"params": params}, x, 0.5), expected, atol=1e-5)


def test_a_file_a_folder_and_tensors_in_memory_give_the_same_parameters(net):
    folder = net.write(net.tensors, CONFIG)
    _, params = pretrained.load(folder, net.family)
    for other in (
        pretrained.load(folder / "model.safetensors", net.family)[1],
        pretrained.load(str(folder), net.family, config={"width": 8})[1],
        pretrained.from_torch(net.tensors, net.module, net.family),
    ):
        assert jax.tree.all(jax.tree.map(same_bits, params, other))


def test_loaded_parameters_do_not_change_with_the_file(net):
    folder = net.write(net.tensors, CONFIG)
    _, params = pretrained.load(folder, net.family)
    file = folder / "model.safetensors"
    size = file.stat().st_size
    with open(file, "r+b") as target:  # in place, so that a memory map of the file would change
        target.write(b"\0" * size)
    check_loaded(params, net.tensors)


@pytest.mark.parametrize("stored", [np.float16, jnp.bfloat16, np.float32])
def test_parameters_have_the_dtype_of_the_file_or_the_given_one(net, stored):
    tensors = {name: value.astype(stored) for name, value in net.tensors.items()}
    folder = net.write(tensors, CONFIG)
    check_loaded(pretrained.load(folder, net.family)[1], tensors)
    for dtype in (jnp.bfloat16, jnp.float32):
        cast = {name: value.astype(dtype) for name, value in tensors.items()}
        check_loaded(pretrained.load(folder, net.family, dtype=dtype)[1], cast)


def test_float64_is_never_silently_narrowed(net):
    tensors = {name: value.astype(np.float64) for name, value in net.tensors.items()}
    with pytest.raises(ValueError, match="of a 64-bit dtype, with jax_enable_x64 off"):
        pretrained.from_torch(tensors, net.module, net.family)
    check_loaded(pretrained.from_torch(tensors, net.module, net.family, dtype=np.float32), net.tensors)
    with jax.enable_x64(True):
        check_loaded(pretrained.from_torch(tensors, net.module, net.family), tensors)


# Where parameters go.


def test_parameters_have_the_given_sharding(net):
    folder, mesh = net.write(net.tensors, CONFIG), Mesh(np.array(jax.devices()[:4]), ("model",))
    replicated, split = NamedSharding(mesh, PartitionSpec()), NamedSharding(mesh, PartitionSpec("model"))

    def last_axis(path, shape):
        assert shapes[path] == shape
        spec = [None] * (len(shape) - 1) + ["model"] if shape[-1] % 4 == 0 else []
        return NamedSharding(mesh, PartitionSpec(*spec))

    _, plain = pretrained.load(folder, net.family)
    shapes = {path: leaf.shape for path, leaf in flat(plain).items()}
    tree = jax.tree.map(lambda leaf: split if leaf.shape[0] % 4 == 0 else replicated, plain)
    for sharding, expected in (
        (SingleDeviceSharding(jax.devices()[3]), lambda path, leaf: SingleDeviceSharding(jax.devices()[3])),
        (replicated, lambda path, leaf: replicated),
        (tree, lambda path, leaf: flat(tree)[path]),
        (last_axis, lambda path, leaf: last_axis(path, leaf.shape)),
    ):
        _, params = pretrained.load(folder, net.family, sharding=sharding)
        assert jax.tree.all(jax.tree.map(same_bits, plain, params))
        for path, leaf in flat(params).items():
            assert leaf.sharding.is_equivalent_to(expected(path, leaf), leaf.ndim)


def test_a_tree_of_shardings_must_be_like_the_parameters(net):
    place = SingleDeviceSharding(jax.devices()[0])
    with pytest.raises(ValueError, match=r"sharding must be a tree like the parameters\n  missing \(6\): conv/bias"):
        pretrained.from_torch(net.tensors, net.module, net.family, sharding={"conv": {"kernel": place}})


# Tensors that are not those of the network.


def without(tensors, *names):
    return {name: value for name, value in tensors.items() if name not in names}


def test_the_message_lists_every_mismatch(net):
    tensors = without(net.tensors, "conv.bias", "table") | {
        "convolution.bias": net.tensors["conv.bias"],
        "out.weight": net.tensors["out.weight"].T,
        "norm.weight": net.tensors["norm.weight"].astype(np.int32),
        "norm.bias": np.zeros([4, 1], np.float32),
    }
    with pytest.raises(ValueError, match="not those of the network") as error:
        pretrained.load(net.write(tensors, CONFIG), net.family)
    assert str(error.value).splitlines()[1:] == [
        "  missing (2): conv.bias, table",
        "  unexpected (1): convolution.bias",
        "  of the wrong shape (2): norm.bias [4, 1] instead of [4], out.weight [4, 2] instead of [2, 4]",
        "  not of floating type (1): norm.weight: int32",
    ]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", [np.float32, jnp.bfloat16, np.float16])
def test_nonfinite_values_are_refused_unless_allowed(net, value, dtype):
    tensors = {name: tensor.astype(dtype) for name, tensor in net.tensors.items()}
    tensors["second.bias"][2] = value
    folder = net.write(tensors, CONFIG)
    with pytest.raises(ValueError, match=r"first\.bias and second\.bias: .* 'pair/bias' has NaN or infinite"):
        pretrained.load(folder, net.family)
    check_loaded(pretrained.load(folder, net.family, allow_nonfinite=True)[1], tensors)


@pytest.mark.parametrize("dtype", [np.int32, "complex64"])
def test_parameters_are_cast_to_floating_dtypes_only(net, dtype):
    with pytest.raises(ValueError, match="dtype must be None or a floating type; got"):
        pretrained.from_torch(net.tensors, net.module, net.family, dtype=dtype)


@pytest.mark.filterwarnings("ignore:overflow encountered in cast")
def test_a_cast_that_overflows_is_refused(net):
    net.tensors["conv.bias"][0] = 1e6
    with pytest.raises(ValueError, match=r"conv\.bias: .* NaN or infinite values in float16"):
        pretrained.from_torch(net.tensors, net.module, net.family, dtype=np.float16)


def test_tensors_of_one_parameter_have_one_dtype(net):
    tensors = net.tensors | {"first.bias": net.tensors["first.bias"].astype(np.float16)}
    with pytest.raises(ValueError, match=r"several dtypes.*: first\.bias, second\.bias: float16, float32"):
        pretrained.from_torch(tensors, net.module, net.family)
    assert pretrained.from_torch(tensors, net.module, net.family, dtype=np.float32)["pair"]["bias"].shape == (2, 4)


def test_old_names_are_renamed_and_refused_beside_the_new_ones(net):
    tensors = {f"old_{name}": value for name, value in net.tensors.items()}
    check_loaded(pretrained.load(net.write(tensors, CONFIG), net.family)[1], net.tensors)
    tensors["out.weight"] = net.tensors["out.weight"]
    with pytest.raises(ValueError, match=r"'out\.weight' occurs twice"):
        pretrained.load(net.write(tensors, CONFIG), net.family)


def test_constants_are_checked_and_only_saved_ones_are_required(net):
    more = {"ids": np.arange(3), "counter": np.array(7)}
    check_loaded(pretrained.from_torch(net.tensors | more, net.module, net.family), net.tensors)
    half = {"table": net.tensors["table"].astype(np.float16)}
    check_loaded(pretrained.from_torch(net.tensors | half, net.module, net.family), net.tensors)
    for wrong, message in (
        ({"ids": np.array([0, 1, 3])}, "'ids' is a constant of this network, but differs from its value by 1"),
        (
            {"table": net.tensors["table"] + np.float32(1e-3)},
            "'table' is a constant .* differs from its value by 0.001",
        ),
        ({"table": net.tensors["table"] * np.nan}, "'table' is a constant .* by nan"),
        ({"table": net.tensors["table"][0]}, r"table \[6\] instead of \[1, 6\]"),
    ):
        with pytest.raises(ValueError, match=message):
            pretrained.from_torch(net.tensors | wrong, net.module, net.family)


def test_a_changed_header_loads_the_same_parameters_or_nothing(net):
    folder = net.write(net.tensors, CONFIG)
    sound = (folder / "model.safetensors").read_bytes()
    header, rng, loaded = 8 + int.from_bytes(sound[:8], "little"), np.random.default_rng(0), 0
    for _ in range(300):
        content = bytearray(sound)
        content[rng.integers(8, header)] = rng.choice(np.frombuffer(b'{}[]",:0123456789-F_ n', np.uint8))
        with open(folder / "model.safetensors", "r+b") as file:  # in place, which is faster than a new file
            file.write(content)
        try:
            _, params = pretrained.load(folder, net.family)
        except ValueError:
            continue
        check_loaded(params, net.tensors)
        loaded += 1
    assert loaded < 60


def test_a_family_without_an_entry_for_a_parameter_is_refused(net):
    family = net.family._replace(entries=lambda module: net.family.entries(module)[1:])
    with pytest.raises(ValueError, match=r"does not describe this module\n  parameters without an entry.*conv/kernel"):
        pretrained.from_torch(net.tensors, net.module, family)
    family = net.family._replace(entries=lambda module: 2 * net.family.entries(module))
    with pytest.raises(ValueError, match=r"used twice"):
        pretrained.from_torch(net.tensors, net.module, family)


# Configs.


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"_class_name": "OtherModel"}, "config belongs to OtherModel; the family 'net' has NetModel"),
        ({"architectures": ["Other"], "model_type": "net"}, "config belongs to Other; "),
        ({"width": 8, "depth": 3}, r"depth is unknown \(it is 3\)"),
        ({"act": "gelu"}, "act must be 'relu', the only implemented value; got 'gelu'"),
        ({"width": "wide"}, "no network of the family 'net'"),
        ({"width": -1}, "no network of the family 'net'"),
        ({"width": 16}, r"conv\.weight \[8, 5, 1, 3\] instead of \[16, 5, 1, 3\]"),
    ],
)
def test_a_config_that_does_not_fit_is_refused(net, config, message):
    with pytest.raises(ValueError, match=message):
        pretrained.load(net.write(net.tensors, config), net.family)


@pytest.mark.parametrize("text", ["", "[]", '{"width": 8, "width": 8}', '{"width": NaN}', "{'width': 8}", "\xff"])
def test_a_damaged_config_is_refused(net, text):
    folder = net.write(net.tensors)
    (folder / "config.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(ValueError, match=r"config\.json"):
        pretrained.load(folder, net.family)


def test_a_checkpoint_without_config_needs_one(net):
    folder = net.write(net.tensors)
    with pytest.raises(ValueError, match=r"no config\.json beside the weights"):
        pretrained.load(folder, net.family)
    check_loaded(pretrained.load(folder, net.family, config=CONFIG)[1], net.tensors)


def test_the_family_is_found_by_its_name_or_the_class_name_in_the_config():
    for name, family in pretrained.FAMILIES.items():
        assert name == family.name == find_family(name, {}).name
    named = pretrained.FAMILIES["guided_unet"].class_names[0]
    assert find_family(None, {"_class_name": named}).name == "guided_unet"
    for family, config in ((None, {}), (None, {"_class_name": "Nobody"}), ("nobody", {}), ("UNet", {})):
        with pytest.raises(ValueError, match=r"one of \[.*'guided_unet'"):
            find_family(family, config)
    assert class_names({"architectures": None, "model_type": "net"}) == ["net"]
    assert class_names({"_class_name": 3}) == []


def test_a_family_of_your_own_is_found_by_its_name_and_by_its_class_name(net):
    folder = net.write(net.tensors, CONFIG)
    with pytest.raises(ValueError, match=r"does not name exactly one known family \(NetModel\)"):
        pretrained.load(folder)
    for family in (None, "net"):
        check_loaded(pretrained.load(folder, family, families=[net.family])[1], net.tensors)
    assert "net" not in pretrained.FAMILIES
    with pytest.raises(ValueError, match="config belongs to NetModel; the family 'dit' has DiT"):
        pretrained.load(folder, "dit", families=[net.family])
    own = net.family._replace(name="uvit", class_names=("UNetModel",))  # both taken by families of this package
    assert find_family(None, {"_class_name": "UNetModel"}, [own]) is own
    assert find_family("uvit", {}, [own]) is own


# Finding the weights.


def test_a_folder_is_searched_for_one_file_of_weights(net, tmp_path):
    folder = net.write(net.tensors, CONFIG, "any.safetensors")
    check_loaded(pretrained.load(folder, net.family)[1], net.tensors)
    net.write({}, CONFIG, "other.safetensors")
    with pytest.raises(ValueError, match=r"several weights files.*'any\.safetensors', 'other\.safetensors'"):
        pretrained.load(folder, net.family)
    net.write(net.tensors, CONFIG, "diffusion_pytorch_model.safetensors")  # the name used on model hubs has priority
    check_loaded(pretrained.load(folder, net.family)[1], net.tensors)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="has no weights file"):
        pretrained.load(tmp_path / "empty", net.family)
    with pytest.raises(FileNotFoundError):
        pretrained.load(tmp_path / "nowhere.safetensors", net.family)
    with pytest.raises(FileNotFoundError, match=r"no file or folder exists at .*nowhere"):
        pretrained.load(tmp_path / "nowhere", net.family)
    (tmp_path / "weights.npz").write_bytes(b"")
    with pytest.raises(ValueError, match=r"must end with \.safetensors"):
        pretrained.load(tmp_path / "weights.npz", net.family)


@pytest.fixture
def shards(net, tmp_path):
    """A checkpoint in two files, and a function that writes its index."""
    names = sorted(net.tensors)
    parts = {"model-1-of-2.safetensors": names[:4], "model-2-of-2.safetensors": names[4:]}
    for file, part in parts.items():
        net.write_file(tmp_path / file, {name: net.tensors[name] for name in part})
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))

    def write_index(changes=None, removed=()):
        places = {name: file for file, part in parts.items() for name in part} | (changes or {})
        places = without(places, *removed)
        (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
        return tmp_path

    return write_index


def test_a_checkpoint_in_several_files_is_loaded_as_one(net, shards):
    folder = shards()
    check_loaded(pretrained.load(folder, net.family)[1], net.tensors)
    check_loaded(pretrained.load(folder / "model.safetensors.index.json", net.family)[1], net.tensors)
    (folder / "model.safetensors.index.json").rename(folder / "net.safetensors.index.fp16.json")  # a variant
    check_loaded(pretrained.load(folder, net.family)[1], net.tensors)


@pytest.mark.parametrize(
    "place",
    ["../model-1-of-2.safetensors", "/etc/passwd", "sub/model.safetensors", "..", ".", "", "a\\b.safetensors", "a\0b"],
)
def test_an_index_lists_files_in_its_own_folder_only(net, shards, place):
    with pytest.raises(ValueError, match="allowed are files in its own folder"):
        pretrained.load(shards({"conv.bias": place}), net.family)


@pytest.mark.parametrize(
    ("changes", "removed", "message"),
    [
        (
            {"conv.bias": "model-3-of-2.safetensors"},
            (),
            "1 do not exist .*: model-3-of-2.safetensors",
        ),
        ({"conv.bias": "model-2-of-2.safetensors"}, (), "disagree: nothing only in the index, 'conv.bias' only in"),
        ({"more": "model-1-of-2.safetensors"}, (), "disagree: 'more' only in the index, nothing only in the file"),
        ({}, ("table",), "disagree: nothing only in the index, 'table' only in the file"),
        ({"conv.bias": 3}, (), "weight_map"),
        ({"conv.bias": "config.json"}, (), r"must end with \.safetensors"),
    ],
)
def test_an_index_that_does_not_fit_its_files_is_refused(net, shards, changes, removed, message):
    with pytest.raises(ValueError, match=message):
        pretrained.load(shards(changes, removed), net.family)


# Torch's own files.


class Malicious:
    def __reduce__(self):
        return exec, ("import sys; sys.code_was_run = True",)
