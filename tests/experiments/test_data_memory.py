"""Resident memory while data of several times its size are streamed."""

import io
import subprocess
import sys
import tarfile
from pathlib import Path

import msgpack
import numpy as np
import pytest
from array_record.python.array_record_module import ArrayRecordWriter
from PIL import Image

ROOT = Path(__file__).parents[2]
PROGRAM = """
import sys
from types import SimpleNamespace
from experiments import data

def resident():
    lines = dict(line.split(":", 1) for line in open("/proc/self/status"))
    return int(lines["VmRSS"].split()[0]) / 1024

kind, path, steps = sys.argv[1], sys.argv[2], int(sys.argv[3])
early = resident()
dataset = data.load(SimpleNamespace(name=kind, path=path, heldout_fraction=0.0, memory_limit_mb=0), "train")
batches = data.batches(dataset, 8, 0, num_threads=2)
seen = []
for step in range(steps):
    next(batches)
    seen.append(resident())
print(early, sum(seen[-50:]) / 50)
"""


def write(folder, kind):
    """Writes 96 MB of pixels: read once or more, they would show if they stayed in memory."""
    rng = np.random.default_rng(0)
    for number in range(4):
        pixels = rng.integers(0, 256, (512, 128, 128, 3), dtype=np.uint8)
        if kind == "arrays":
            np.save(folder / f"images-{number:05d}.npy", pixels)
        elif kind == "array_record":
            writer = ArrayRecordWriter(str(folder / f"x-{number}.array_record"), "group_size:1")
            for image in pixels:
                writer.write(msgpack.packb({"image": image.tobytes(), "shape": list(image.shape)}))
            writer.close()
        else:
            with tarfile.open(folder / f"x-{number}.tar", "w") as archive:
                for i, image in enumerate(pixels):
                    file = io.BytesIO()
                    Image.fromarray(image).save(file, "BMP")
                    member = tarfile.TarInfo(f"{number}_{i}.bmp")
                    member.size = file.tell()
                    file.seek(0)
                    archive.addfile(member, file)


@pytest.mark.long
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="resident memory is read from /proc")
@pytest.mark.parametrize("kind", ["arrays", "array_record", "tar"])
def test_resident_memory_is_flat_while_data_are_streamed(tmp_path, kind):
    write(tmp_path, kind)
    command = [sys.executable, "-c", PROGRAM, kind, str(tmp_path), "400"]
    lines = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT).stdout.splitlines()
    early, late = map(float, lines[-1].split())
    assert late - early < 60, f"{early:.0f} MB, then {late:.0f} MB"  # of 96 MB of data
