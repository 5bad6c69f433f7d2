"""Torch's files are read without torch: files that torch 2.13 wrote, and what else people have in their place."""

import contextlib
import os
import pickle
import zipfile

import jax.numpy as jnp
import numpy as np
import pytest
from golden_files import FOLDER
from golden_files import load as golden
from pretrained_checks import CONFIG, check_loaded, flat, same_bits

from diffusers_fn import pretrained
from diffusers_fn.pretrained.torch_file import open_torch_file

FILES = FOLDER / "torch_files"  # make.txt is the script that wrote them


class Malicious:
    def __reduce__(self):
        return exec, ("import os; os.mkdir('code-was-run')",)


@pytest.mark.parametrize("file", ["layouts.pt", "legacy.pt"])
def test_every_layout_and_dtype_is_read_as_torch_reads_it(file):
    expected, found = golden("torch_files/layouts"), open_torch_file(FILES / file)
    assert set(found) == set(expected)
    kinds = {"half": jnp.float16, "bfloat16": jnp.bfloat16, "float8": jnp.float8_e4m3fn}
    for name, value in expected.items():
        kind = np.dtype(kinds.get(name, value.dtype))
        assert (found[name].shape, found[name].dtype) == (value.shape, kind)
        assert same_bits(found[name].read(), value.astype(kind))
        found[name].release()
        assert same_bits(found[name].read(), value.astype(kind))


def test_the_average_of_a_training_checkpoint_is_loaded_unless_another_entry_is_named(net):
    averaged = {name: value for name, value in golden("torch_files/training").items()}
    check_loaded(pretrained.load(FILES / "training.pt", net.family, config=CONFIG)[1], averaged)
    check_loaded(pretrained.load(FILES / "training.pt", net.family, config=CONFIG, key="ema")[1], averaged)
    for key, message in (
        ("weights", "has no 'weights'; it has 'args', 'ema', 'loss', 'model', 'opt', 'step'"),
        ("opt", "'opt' in .* is no state dict; those are 'model', 'ema'"),
    ):
        with pytest.raises(ValueError, match=message):
            pretrained.load(FILES / "training.pt", net.family, config=CONFIG, key=key)


def test_the_raw_parameters_lie_under_a_prefix_that_is_taken_off(net):
    raw = {name: value + 1 for name, value in golden("torch_files/training").items()}
    with pytest.raises(ValueError, match=r"'table' is a constant"):  # the file's own is moved by 1 as well
        pretrained.load(FILES / "training.pt", net.family, config=CONFIG, key="model")
    family = net.family._replace(constants=lambda module: [pretrained.Constant("table", None)])
    check_loaded(pretrained.load(FILES / "training.pt", family, config=CONFIG, key="model")[1], raw)


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "model.", "unet.", "model.diffusion_model.", "a.b.c."])
def test_a_common_prefix_is_taken_off_and_other_groups_are_left_out(net, prefix):
    group = {prefix + name: value for name, value in net.tensors.items()}
    others = {"first_stage_model.conv.weight": np.zeros(3, np.float32), "step": np.zeros(1, np.float32)}
    for tensors in (group, {**others, **group}):
        check_loaded(pretrained.load(net.write(tensors, CONFIG), net.family)[1], net.tensors)
        check_loaded(pretrained.load(net.write(tensors, CONFIG), net.family, prefix=prefix)[1], net.tensors)


def test_the_prefix_stands_in_the_message_of_what_does_not_fit(net):
    tensors = {f"module.{name}": value for name, value in net.tensors.items()}
    bias = tensors.pop("module.conv.bias")
    with pytest.raises(ValueError, match=r"without the prefix 'module\.'(.|\n)*missing \(1\): conv.bias"):
        pretrained.load(net.write(tensors, CONFIG), net.family)
    tensors |= {"module.conv.bias": bias, "module.more": bias}
    with pytest.raises(ValueError, match=r"without the prefix 'module\.'(.|\n)*unexpected \(1\): more"):
        pretrained.load(net.write(tensors, CONFIG), net.family)
    tensors.pop("module.more")
    twice = tensors | {f"ema.{name}": value * 2 for name, value in net.tensors.items()}
    twice["ema.table"] = net.tensors["table"]
    with pytest.raises(ValueError, match=r"pass prefix, one of 'ema\.', 'module\.'"):
        pretrained.load(net.write(twice, CONFIG), net.family)
    assert same_bits(
        flat(pretrained.load(net.write(twice, CONFIG), net.family, prefix="ema.")[1])["conv/bias"], 2 * bias
    )


# Files that are refused, and no code in them is run.


def test_a_name_that_is_neither_a_tensor_nor_data_is_refused_before_it_is_called(net, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=r"names (posix|nt|os)\.mkdir, which is neither a tensor nor plain data"):
        pretrained.load(FILES / "malicious.pt", net.family, config=CONFIG)
    (tmp_path / "raw.pt").write_bytes(pickle.dumps(Malicious()))
    with pytest.raises(ValueError, match=r"names builtins\.exec"):
        pretrained.load(tmp_path / "raw.pt", net.family, config=CONFIG)
    for number, code in enumerate((b"cos\nsystem\n(S'mkdir code-was-run'\ntR.", b"cbuiltins\neval\n(S'1'\ntR.")):
        with zipfile.ZipFile(tmp_path / f"{number}.pt", "w") as archive:
            archive.writestr("net/data.pkl", code)
        with pytest.raises(ValueError, match=r"names (os\.system|builtins\.eval)"):
            pretrained.load(tmp_path / f"{number}.pt", net.family, config=CONFIG)
    assert not os.path.exists("code-was-run")


def test_the_class_of_a_callback_in_a_training_checkpoint_is_skipped(tmp_path):
    name = b"cpytorch_lightning.callbacks.model_checkpoint\nModelCheckpoint\n"
    with zipfile.ZipFile(tmp_path / "net.ckpt", "w") as archive:  # {"callbacks": {ModelCheckpoint: {}}}
        archive.writestr("net/data.pkl", b"\x80\x02}X\x09\x00\x00\x00callbacks}" + name + b"}ss.")
    ((key, value),) = open_torch_file(tmp_path / "net.ckpt")["callbacks"].items()
    assert (key.__name__, value) == ("_Skipped", {})


def test_functions_that_a_pickle_may_call_cannot_be_changed_by_it(tmp_path):
    for name in (b"torch._utils\n_rebuild_tensor_v2", b"torch\nSize", b"torch\nFloatStorage", b"argparse\nNamespace"):
        with zipfile.ZipFile(tmp_path / "net.pt", "w") as archive:
            archive.writestr("net/data.pkl", b"c" + name + b"\n(S'function'\nNdb.")
        with pytest.raises(ValueError, match="damaged"):
            open_torch_file(tmp_path / "net.pt")
    assert set(open_torch_file(FILES / "training.pt")) == {"model", "ema", "opt", "args", "loss", "step"}


@pytest.mark.parametrize("file", ["layouts.pt", "legacy.pt"])
def test_a_damaged_file_gives_its_tensors_or_a_value_error(tmp_path, file):
    content, rng = bytearray((FILES / file).read_bytes()), np.random.default_rng(0)
    damaged = tmp_path / "net.pt"
    for length in rng.integers(0, len(content), 60):
        damaged.write_bytes(content[:length])
        with pytest.raises(ValueError, match=r"net\.pt is (damaged|refused)"):
            open_torch_file(damaged)
    for _ in range(300):
        changed = bytearray(content)
        changed[rng.integers(len(content))] = rng.integers(256)
        damaged.write_bytes(changed)
        with contextlib.suppress(ValueError):
            found = open_torch_file(damaged)
            for value in found.values():
                assert value.read().shape == value.shape


def test_what_is_no_state_dict_is_refused(net, tmp_path):
    for content, message in (
        ([1, 2], "holds a list; allowed are state dicts"),
        ({"step": 3, "names": ["a"]}, "has no state dict; it has 'names', 'step'"),
        ({}, "has no state dict; it has nothing"),
    ):
        with zipfile.ZipFile(tmp_path / "net.pt", "w") as archive:
            archive.writestr("net/data.pkl", pickle.dumps(content))
        with pytest.raises(ValueError, match=message):
            pretrained.load(tmp_path / "net.pt", net.family, config=CONFIG)
    with zipfile.ZipFile(tmp_path / "other.pt", "w") as archive:
        archive.writestr("readme.txt", "")
    with pytest.raises(ValueError, match="is a zip archive, but not one"):
        pretrained.load(tmp_path / "other.pt", net.family, config=CONFIG)


POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:{}\nsize 3438167540\n".format("0" * 64)


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin", "net.ckpt", "config.json"])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (POINTER, r"a git-lfs pointer to a file of 3,438,167,540 bytes.*`git lfs pull`"),
        ("<!DOCTYPE html>\n<html><body>404</body></html>", "is a web page"),
        ("<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>", "is a web page"),
        ("", "is empty"),
    ],
)
def test_what_is_downloaded_in_place_of_a_file_is_named(net, tmp_path, name, content, message):
    net.write(net.tensors, CONFIG)
    if name != "config.json":
        (tmp_path / "model.safetensors").unlink()
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=rf"{name} {message}" if message.startswith("is") else message) as error:
        pretrained.load(tmp_path, net.family)
    assert name in str(error.value)
    assert "\n" not in str(error.value)


def test_the_root_of_a_pipeline_lists_its_folders(net, tmp_path):
    for name in ("unet", "vae"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text("{}")
    (tmp_path / "scheduler").mkdir()
    (tmp_path / "model_index.json").write_text("{}")
    for path in (tmp_path, tmp_path / "model_index.json"):
        with pytest.raises(ValueError, match=r'is a pipeline .*: .*load\(".*unet"\) or load\(".*vae"\)$'):
            pretrained.load(path)


def test_safetensors_are_preferred_to_a_torch_file_beside_them(net, tmp_path):
    folder = net.write(net.tensors, CONFIG)
    (folder / "model.bin").write_bytes(b"never read")
    check_loaded(pretrained.load(folder, net.family)[1], net.tensors)
