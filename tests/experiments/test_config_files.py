"""Configs from files, and values of single fields from the command line."""

import os
import sys
from pathlib import Path

import pytest

from diffusers_fn.from_config.defaults import default_config
from experiments import config_files, fields
from experiments.config_files import load_config, override

ROOT = Path(__file__).resolve().parents[2]
GOOD = "from diffusers_fn.from_config.defaults import customise, default_config\n"


@pytest.fixture(autouse=True)
def path(monkeypatch):
    monkeypatch.setattr(sys, "path", list(sys.path))


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("training.num_steps", "20_000", 20_000),
        ("training.learning_rate", "1e-4", 1e-4),
        ("training.learning_rate", "1", 1.0),
        ("data.flip", "true", True),
        ("data.flip", "F", False),
        ("data.shape", "(28, 28, 1)", (28, 28, 1)),
        ("data.shape", "28,28,1", (28, 28, 1)),
        ("data.shape", "[2]", (2,)),
        ("data.shape", "2", (2,)),
        ("sampler.cfg_interval", "(0.0, inf)", (0.0, float("inf"))),
        ("training.ema_stds", "0.05,0.1", (0.05, 0.1)),
        ("noise_schedule.sigma_min", "0.5", 0.5),
        ("noise_schedule.sigma_min", "None", None),
        ("data.num_classes", "3", 3),
        ("data.value_range", "0,1", (0, 1)),
        ("data.name", "None", "None"),  # a text
        ("data.name", "my.data:load", "my.data:load"),
        ("seed", "7", 7),
    ],
)
def test_values_from_the_command_line(name, text, expected):
    config = default_config()
    override(config, name, text)
    value = config
    for part in name.split("."):
        value = value[part]
    assert value == expected
    assert type(value) is type(expected)


def test_a_placeholder_that_a_config_sets_can_be_none_again():
    config = default_config()
    config.noise_schedule.sigma_min = 0.3
    override(config, "noise_schedule.sigma_min", "None")
    assert config.noise_schedule.sigma_min is None


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("training.num_steps", "many", "config.training.num_steps must be of type int; got 'many'"),
        ("training.num_steps", "1e4", "must be of type int; got '1e4'"),
        ("training.num_steps", "None", "must be of type int; got 'None'"),
        ("noise_schedule.sigma_min", "low", "config.noise_schedule.sigma_min must be of type float or None; got 'low'"),
        ("data.flip", "perhaps", "config.data.flip must be of type bool; got 'perhaps'"),
        ("data.shape", "(8, 8, x)", "config.data.shape must be of type tuple; got"),
        ("data", "3", "config.data is a section, with the fields background, "),
        ("seed.x", "3", "config.seed has no field 'x'; it has no fields"),
        ("training.num_step", "3", "did you mean config.training.num_steps or config.training.warmup_steps.$"),
        ("learning_rate", "3", "config has no field 'learning_rate'; it has .* mean config.training.learning_rate.?$"),
        ("trainin.num_steps", "3", "config has no field 'trainin'; it has .* did you mean config.training.?$"),
    ],
)
def test_wrong_values_and_fields_name_what_is_allowed(name, text, message):
    config = default_config()
    with pytest.raises(ValueError, match=message):
        override(config, name, text)
    assert config.to_dict() == default_config().to_dict()


@pytest.mark.parametrize(
    ("text", "variant", "message"),
    [
        (GOOD + "def get_config()\n    return 1\n", "", "mine.py, line 2: "),
        ("import numpi\n", "", "mine.py, line 1: ModuleNotFoundError: No module named 'numpi'"),
        (
            GOOD + "\ndef get_config():\n    return customise(default_config(), data={'nmae': 1})\n",
            "",
            "line 4: .*no fi",
        ),
        (GOOD + "\ndef get_config():\n    return default_config().nothing\n", "", "mine.py, line 4: AttributeError: "),
        (GOOD, "", "mine.py has no function get_config"),
        ("def get_config():\n    return {}\n", "", "must return a ConfigDict.* got {}"),
        (GOOD + "def get_config():\n    return default_config()\n", ":small", "has no variants: give --config="),
        (
            "from ml_collections import ConfigDict\nget_config = ConfigDict\n",
            "",
            "mine.py: the config lacks data, backbone",
        ),
        ("raise SystemExit('no GPU')", "", "mine.py, line 1: SystemExit: no GPU"),
    ],
)
def test_a_mistake_in_a_config_file_is_named_with_its_line(tmp_path, text, variant, message):
    path = tmp_path / "mine.py"
    path.write_text(text)
    with pytest.raises(ValueError, match=message) as raised:
        load_config(f"{path}{variant}")
    assert str(path) in str(raised.value)
    assert "\n" not in str(raised.value).strip()


def test_a_mistyped_file_does_not_exist(monkeypatch):
    monkeypatch.chdir(ROOT)
    with pytest.raises(ValueError, match=r"no file configs/ddpm_digit.py; did you mean configs/ddpm_digits.py\?"):
        load_config("configs/ddpm_digit.py:unet")
    with pytest.raises(ValueError, match=r"no file ddpm_digits; did you mean configs/ddpm_digits.py\?"):
        load_config("ddpm_digits")
    with pytest.raises(ValueError, match=r"there is no file zzz.py \(the current folder is"):
        load_config("zzz.py")


@pytest.mark.parametrize("given", ["absolute", "relative", "home"])
def test_a_config_in_a_folder_of_ones_own_is_found_from_any_folder(tmp_path, monkeypatch, given):
    folder = tmp_path / "somebody" / "study"
    folder.mkdir(parents=True)
    (folder / "sizes.py").write_text("SIZE = 24\n")
    (folder / "mine.py").write_text(
        f"{GOOD}from sizes import SIZE\n\ndef get_config():\n    return customise(default_config(), seed=SIZE)\n"
    )
    monkeypatch.setenv("HOME", str(tmp_path / "somebody"))
    monkeypatch.chdir(tmp_path)
    names = {"absolute": folder / "mine.py", "relative": "somebody/study/mine.py", "home": "~/study/mine.py"}
    monkeypatch.delitem(sys.modules, "sizes", raising=False)
    assert load_config(str(names[given])).seed == 24
    monkeypatch.delitem(sys.modules, "sizes", raising=False)


def test_home_folders_are_expanded_in_every_field_that_holds_a_path(monkeypatch):
    monkeypatch.setenv("HOME", "/home/ann")
    config = default_config()
    for name in config_files.PATHS:
        override(config, name, "~/x")
    config_files.expand_paths(config)
    sections = (name.split(".") for name in config_files.PATHS)
    assert {config[section][field] for section, field in sections} == {"/home/ann/x"}
    paths = {
        name for name, comment in fields.comments().items() if "a file" in comment or "work directory of" in comment
    }
    paths = {name for name in paths if isinstance(config[name.split(".")[0]][name.split(".")[1]], str)}
    assert paths | {"data.path"} == set(config_files.PATHS)
    with pytest.raises(ValueError, match="nobody_of_this_name"):
        config_files.expanded(f"~nobody_of_this_name{os.getpid()}/x")


def test_the_list_of_fields_has_every_field_with_type_and_comment(monkeypatch):
    monkeypatch.chdir(ROOT)
    config = load_config("configs/ddpm_digits.py:unet")
    lines = fields.list_fields(config).splitlines()
    flat = [name for name, section in config.items() if not hasattr(section, "items")]
    flat += [f"{name}.{field}" for name, section in config.items() if hasattr(section, "items") for field in section]
    assert sorted(line.split("=")[0] for line in lines) == sorted(f"--config.{name}" for name in flat)
    (steps,) = [line for line in lines if line.startswith("--config.training.steps_per_call")]
    assert steps.split(maxsplit=2) == [
        "--config.training.steps_per_call=1", "int", "training steps per compiled call; num_steps and *_every must be "
        "multiples of it",
    ]  # fmt: skip
    (blocks,) = [line for line in lines if line.startswith("--config.backbone.num_res_blocks")]
    assert blocks.endswith("residual blocks per level on the way down.")
    (sigma,) = [line for line in lines if line.startswith("--config.noise_schedule.sigma_min")]
    assert "float or None" in sigma
