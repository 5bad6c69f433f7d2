"""Adapters: merged weights bit for bit, both layouts of names, traced scales, training, mistakes."""

import hashlib
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from diffusers_fn.pretrained import load, lora
from diffusers_fn.pretrained.load import FAMILIES
from diffusers_fn.pretrained.safetensors_file import open_safetensors, write_safetensors

GOLDEN = Path(__file__).parents[1] / "golden_pipelines"
FILE = GOLDEN / "lora" / "lora_peft_alpha.safetensors"


@pytest.fixture(scope="module")
def unet():
    return load(GOLDEN / "sd1" / "unet")


@pytest.fixture(scope="module")
def by_name(unet):
    """The entry of each published tensor of the U-Net."""
    return {name: entry for entry in FAMILIES["unet2d_condition"].entries(unet[0]) for name in entry.names}


def at(tree, path):
    for name in path.split("/"):
        tree = tree[name]
    return tree


def test_merged_weights_are_those_of_the_reference_bit_for_bit(unet, by_name):
    expected = json.loads((GOLDEN / "lora" / "merged.json").read_text())["sha256"]
    merged = lora.merge({"unet": unet[1]}, lora.load(FILE))["unet"]
    assert len(expected) == 53
    for name, digest in expected.items():
        (weight,) = by_name[name].to_torch(np.asarray(at(merged, by_name[name].path)))
        assert hashlib.sha256(np.ascontiguousarray(weight).tobytes()).hexdigest() == digest, name
    touched = {by_name[name].path for name in expected}
    for entry in by_name.values():
        if entry.path not in touched:
            np.testing.assert_array_equal(at(merged, entry.path), at(unet[1], entry.path))


def kohya(tmp_path):
    """The same adapter in kohya's names and with an alpha for each layer."""
    arrays = {}
    for name, tensor in open_safetensors(FILE).items():
        layer, part = name.removeprefix("unet.").split(".lora_")
        layer = "lora_unet_" + layer.replace(".", "_")
        arrays[f"{layer}.lora_{'down' if part[0] == 'A' else 'up'}.weight"] = tensor.read()
        arrays[f"{layer}.alpha"] = np.float32(6.0).reshape(())
    path = tmp_path / "kohya.safetensors"
    with open(path, "wb") as file:
        write_safetensors(file, {name: (a.shape, a.dtype) for name, a in arrays.items()}, arrays.items())
    return path


def test_both_layouts_of_names_are_one_adapter(unet, tmp_path):
    params = {"unet": unet[1]}
    one, other = (lora.merge(params, lora.load(path), 0.7) for path in (FILE, kohya(tmp_path)))
    jax.tree.map(np.testing.assert_array_equal, one, other)


def test_a_written_adapter_is_read_again(unet, tmp_path):
    params = {"unet": unet[1]}
    adapter = lora.load(FILE)
    lora.save(tmp_path / "mine.safetensors", adapter, params)
    again = lora.load(tmp_path)
    assert set(open_safetensors(tmp_path / "mine.safetensors")) == set(open_safetensors(FILE))
    jax.tree.map(np.testing.assert_array_equal, *(lora.merge(params, each, 0.7) for each in (adapter, again)))
    lora.save(tmp_path / "mine.safetensors", again, params)  # its alpha is the rank
    jax.tree.map(np.testing.assert_array_equal, again, lora.load(tmp_path))


def test_a_traced_scale_compiles_once_and_gives_the_same(unet):
    params, adapter, traces = {"unet": unet[1]}, lora.load(FILE), []

    @jax.jit
    def merged(params, adapter, scale):
        traces.append(1)
        return lora.merge(params, adapter, scale)

    for scale in (0.0, 0.5, 1.0):
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, atol=2e-6),
            merged(params, adapter, scale),
            lora.merge(params, adapter, scale),
        )
    assert len(traces) == 1


def test_a_new_adapter_changes_nothing_and_learns_a_change_of_its_rank():
    key = jax.random.key(0)
    kernel = jax.random.normal(key, (6, 4))
    params = {"text_encoder": {"layer_0": {"attention": {"query": {"kernel": kernel, "bias": jnp.zeros(4)}}}}}
    adapter = lora.init(key, params, rank=2)
    assert [*adapter.layers["text_encoder"]] == ["text_model_encoder_layers_0_self_attn_q_proj"]
    jax.tree.map(np.testing.assert_array_equal, lora.merge(params, adapter), params)
    change = jnp.outer(jnp.arange(6.0), jnp.ones(4)) * 0.1

    def loss(adapter):
        merged = lora.merge(params, adapter)["text_encoder"]["layer_0"]["attention"]["query"]["kernel"]
        return jnp.mean((merged - kernel - change) ** 2)

    optimizer = optax.adam(3e-2)

    @jax.jit
    def step(adapter, state):
        updates, state = optimizer.update(jax.grad(loss)(adapter), state)
        return optax.apply_updates(adapter, updates), state

    state = optimizer.init(adapter)
    for _ in range(400):
        adapter, state = step(adapter, state)
    assert loss(adapter) < 1e-4 < loss(lora.init(key, params, rank=2))


def test_mistakes_are_named(unet, tmp_path):
    params = {"unet": unet[1]}
    adapter = lora.load(FILE)
    with pytest.raises(ValueError, match=r"layers of unet; the parameters are of vae"):
        lora.merge({"vae": {}}, adapter)
    other = lora.Lora({"unet": {"conv_9": lora.Factors(np.ones((1, 2)), np.ones((2, 1)))}})
    with pytest.raises(ValueError, match=r"another network: 1 of its 1 layers are not in the unet, such as conv_9"):
        lora.merge(params, other)
    wide = lora.Lora({"unet": {"conv_in": lora.Factors(np.ones((1, 2, 3, 3)), np.ones((5, 1, 1, 1)))}})
    with pytest.raises(ValueError, match=r"another network: unet conv_in: its factors are"):
        lora.merge(params, wide)
    with pytest.raises(ValueError, match="rank must be"):
        lora.init(jax.random.key(0), params, rank=0)
    with pytest.raises(ValueError, match="no layer"):
        lora.init(jax.random.key(0), params, targets=["nowhere$"])
    with pytest.raises(ValueError, match="must hold one"):
        lora.load(tmp_path)
    with pytest.raises(ValueError, match=r"no LoRA in PEFT's or kohya's names: it has the tensor 'conv_in\.bias'"):
        lora.load(GOLDEN / "sd1" / "unet" / "diffusion_pytorch_model.safetensors")
