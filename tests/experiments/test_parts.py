"""Samples on disk: an interrupted command continues, another one is refused."""

import numpy as np
import pytest

from experiments.parts import Parts


def test_batches_come_back_in_order_and_as_one_file(tmp_path):
    parts = Parts(tmp_path / "parts", {"seed": 0, "shape": (2,)})
    for start in (2, 0, 4):
        parts.save(start, np.arange(start, min(start + 2, 5), dtype=np.float32)[:, None] * np.ones((1, 2), np.float32))
    assert 2 in parts
    assert 1 not in parts
    assert parts.count() == 5
    assert parts.read()[:, 1].tolist() == [0, 1, 2, 3, 4]
    assert parts.read(3)[:, 0].tolist() == [0, 1, 2]
    parts.write_npz(tmp_path / "all.npz", labels=np.arange(5), names=np.array(["a", "bc"]))
    with np.load(tmp_path / "all.npz") as held:
        np.testing.assert_array_equal(held["samples"], parts.read())
        assert held["samples"].dtype == np.float32
        assert held["labels"].tolist() == [0, 1, 2, 3, 4]
        assert held["names"].tolist() == ["a", "bc"]
    parts.remove()
    assert not (tmp_path / "parts").exists()


def test_parts_of_another_command_are_refused(tmp_path):
    Parts(tmp_path, {"seed": 0, "shape": (2,), "params": "ema"}).save(0, np.zeros((1, 2)))
    assert 0 in Parts(tmp_path, {"seed": 0, "shape": (2,), "params": "ema"})
    with pytest.raises(
        ValueError, match=r"\(params: ema there, raw here\): repeat that command .* or delete the folder"
    ):
        Parts(tmp_path, {"seed": 0, "shape": (2,), "params": "raw"})
    (tmp_path / "command.json").write_text("{")
    with pytest.raises(ValueError, match=r"command.json is damaged .* delete the folder"):
        Parts(tmp_path, {"seed": 0})
