"""The reader and writer of safetensors files: the reference's bytes, and every kind of invalid header."""

import io
import json
import os
import pathlib

import jax.numpy as jnp
import numpy as np
import pytest

from diffusers_fn.pretrained.safetensors_file import DTYPES, open_safetensors, write_safetensors

GOLDEN = pathlib.Path(__file__).parents[1] / "golden_nets"
A, B = np.arange(6, dtype=np.float32).reshape(2, 3), np.arange(4, dtype=np.float16)


def file_bytes(header, data, *, length=None):
    """Returns a file with this header (a dict, or bytes), this data, and a header length that may be wrong."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + data


def entry(begin, end, shape, dtype="F32"):
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


@pytest.mark.parametrize("name", ["guided_unet_plain", "unet2d_ddpm"])
def test_a_file_of_the_reference_is_read_and_written_byte_for_byte(name):
    path = GOLDEN / name / "weights.safetensors"
    tensors = open_safetensors(path)
    file = io.BytesIO()
    specs = {name: (tensor.shape, tensor.dtype) for name, tensor in tensors.items()}
    write_safetensors(file, specs, ((name, tensors[name].read()) for name in reversed(tensors)))
    assert file.getvalue() == path.read_bytes()


def test_every_dtype_is_written_and_read_bit_for_bit(tmp_path):
    rng = np.random.default_rng(0)
    tensors = {}
    for code, dtype in DTYPES.items():
        bits = rng.integers(0, 2 if code == "BOOL" else 256, 6 * dtype.itemsize, np.uint8)
        tensors[code] = bits.view(dtype).reshape(3, 1, 2)
    tensors |= {"scalar": np.float32(3), "none": np.zeros([0, 4], np.float32)}
    tensors = {name: np.asarray(value) for name, value in tensors.items()}
    with open(tmp_path / "all.safetensors", "wb") as file:
        specs = {name: (value.shape, value.dtype) for name, value in tensors.items()}
        write_safetensors(file, specs, tensors.items(), {"format": "pt"})
    found = open_safetensors(tmp_path / "all.safetensors")
    assert set(found) == set(tensors)
    for name, value in tensors.items():
        array = found[name].read()
        assert (array.shape, array.dtype, array.tobytes()) == (value.shape, value.dtype, value.tobytes()), name


def test_a_transposed_array_is_written_in_row_major_order(tmp_path):
    with open(tmp_path / "a.safetensors", "wb") as file:
        write_safetensors(file, {"a": ((3, 2), A.dtype)}, [("a", A.T)])
    np.testing.assert_array_equal(open_safetensors(tmp_path / "a.safetensors")["a"].read(), A.T)


def test_the_memory_of_a_tensor_can_be_released_and_read_again(tmp_path):
    (tmp_path / "a.safetensors").write_bytes(file_bytes({"a": entry(0, 24, [2, 3])}, A.tobytes()))
    tensor = open_safetensors(tmp_path / "a.safetensors")["a"]
    view = tensor.read()
    tensor.release()
    np.testing.assert_array_equal(view, A)
    assert not view.flags.writeable


@pytest.mark.parametrize(
    ("specs", "tensors"),
    [
        ({"a": ((2, 3), A.dtype)}, []),
        ({"a": ((2, 3), A.dtype)}, [("a", A.T)]),
        ({"a": ((2, 3), A.dtype)}, [("a", A.astype(np.float16))]),
        ({"a": ((2, 3), A.dtype)}, [("a", A), ("a", A)]),
        ({"a": ((2, 3), np.dtype(np.complex64))}, []),
        ({"a": ((2,), np.dtype(jnp.int4))}, []),
    ],
)
def test_the_writer_refuses_tensors_that_differ_from_their_specs(specs, tensors):
    with pytest.raises(ValueError, match=r"a"):
        write_safetensors(io.BytesIO(), specs, tensors)


GOOD = {"a": entry(0, 24, [2, 3]), "b": entry(24, 32, [4], "F16")}
DATA = A.tobytes() + B.tobytes()
DAMAGED = {
    "empty": (b"", "0 bytes"),
    "five bytes": (b"12345", "5 bytes"),
    "truncated header": (file_bytes(GOOD, DATA)[:40], "may be truncated"),
    "truncated data": (file_bytes(GOOD, DATA)[:-1], "may be truncated"),
    "no data": (file_bytes(GOOD, b""), "may be truncated"),
    "bytes after the data": (file_bytes(GOOD, DATA + b"x"), "take 32 bytes, but 33"),
    "a header longer than the file": (file_bytes(GOOD, DATA, length=10_000), "claims 10000 bytes"),
    "a header longer than any": (file_bytes(GOOD, DATA, length=2**64 - 1), "more than the 100000000 allowed"),
    "a shorter header": (file_bytes(GOOD, DATA, length=20), "JSON cannot be read"),
    "no header": (file_bytes(b"", DATA), "does not begin with"),
    "a list for a header": (file_bytes(b"[]", b""), "does not begin with"),
    "not JSON": (file_bytes(b"{a: 1}", b""), "JSON cannot be read"),
    "not UTF-8": (file_bytes(b'{"\xff": 1}', b""), "JSON cannot be read"),
    "JSON and more": (file_bytes(b"{} {}", b""), "JSON cannot be read"),
    "a deep nest": (file_bytes(b'{"a":' + b"[" * 100_000, b""), "nested too deeply"),
    "NaN": (file_bytes(b'{"a": NaN}', b""), "not a JSON number"),
    "a name twice": (
        file_bytes(b'{"a":%s,"a":%s}' % ((json.dumps(entry(0, 24, [2, 3])).encode(),) * 2), A.tobytes()),
        "'a' occurs twice",
    ),
    "a field twice": (
        file_bytes(b'{"a":{"dtype":"F32","shape":[6],"shape":[2,3],"data_offsets":[0,24]}}', A.tobytes()),
        "'shape' occurs twice",
    ),
    "an overlap": (file_bytes(GOOD | {"b": entry(20, 28, [4], "F16")}, DATA[:-4]), "overlaps"),
    "the same bytes twice": (file_bytes({"a": entry(0, 24, [6]), "c": entry(0, 24, [6])}, A.tobytes()), "overlaps"),
    "a gap": (file_bytes(GOOD | {"b": entry(28, 36, [4], "F16")}, DATA + b"1234"), "leaves a gap"),
    "a gap at the beginning": (file_bytes({"a": entry(4, 28, [6])}, DATA[:28]), "leaves a gap"),
    "offsets beyond the file": (file_bytes(GOOD | {"b": entry(24, 40, [8], "F16")}, DATA), "may be truncated"),
    "offsets that do not fit the shape": (file_bytes({"a": entry(0, 24, [2, 4])}, A.tobytes()), "takes 32 bytes"),
    "offsets the wrong way": (file_bytes({"a": entry(24, 0, [2, 3])}, A.tobytes()), "takes 24 bytes"),
    "negative offsets": (file_bytes({"a": entry(-24, 0, [2, 3])}, A.tobytes()), "integers >= 0"),
    "one offset": (file_bytes({"a": entry(0, 24, [6]) | {"data_offsets": [24]}}, A.tobytes()), "two data_offsets"),
    "a fractional offset": (file_bytes({"a": entry(0, 24.0, [6])}, A.tobytes()), "integers >= 0"),
    "a negative shape": (file_bytes({"a": entry(0, 24, [-2, -3])}, A.tobytes()), "integers >= 0"),
    "a boolean shape": (file_bytes({"a": entry(0, 4, [True])}, DATA[:4]), "integers >= 0"),
    "a shape that is no list": (file_bytes({"a": entry(0, 24, 6)}, A.tobytes()), "integers >= 0"),
    "an enormous shape": (file_bytes({"a": entry(0, 24, [2**62, 2**62])}, A.tobytes()), "takes"),
    "too many axes": (file_bytes({"a": entry(0, 24, [1] * 99 + [6])}, A.tobytes()), "at most 64 integers"),
    "an offset of 200 digits": (file_bytes({"a": entry(0, 10**200, [6])}, A.tobytes()), "integers >= 0"),
    "an offset of 20000 digits": (file_bytes(b'{"a":' + b"9" * 20_000 + b"}", b""), "JSON cannot be read"),
    "an unknown dtype": (file_bytes({"a": entry(0, 24, [6], "F33")}, A.tobytes()), "unknown dtype 'F33'"),
    "a dtype that is no name": (file_bytes({"a": entry(0, 24, [6], ["F32"])}, A.tobytes()), "unknown dtype"),
    "no shape": (file_bytes({"a": {"dtype": "F32", "data_offsets": [0, 24]}}, A.tobytes()), "and nothing else"),
    "another field": (file_bytes({"a": entry(0, 24, [6]) | {"x": 1}}, A.tobytes()), "and nothing else"),
    "an entry that is no object": (file_bytes({"a": 1}, b""), "and nothing else"),
    "metadata that is no object": (file_bytes({"__metadata__": 1}, b""), "__metadata__"),
    "metadata with a number": (file_bytes({"__metadata__": {"a": 1}}, b""), "__metadata__"),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_the_error_for_a_damaged_file_names_it(tmp_path, case):
    content, message = DAMAGED[case]
    path = tmp_path / "net.safetensors"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=rf"net\.safetensors is not a valid safetensors file: .*{message}"):
        open_safetensors(path)


def test_a_header_with_changed_bytes_is_refused_or_still_fits_the_data(tmp_path):
    rng, sound = np.random.default_rng(0), file_bytes(GOOD, DATA)
    path, opened = tmp_path / "net.safetensors", 0
    alphabet = np.frombuffer(b'{}[]",:0123456789-eEF_ \\u\x00\xff', np.uint8)
    path.write_bytes(sound)
    for trial in range(1500):
        content = bytearray(sound)
        for _ in range(rng.integers(1, 4)):
            at = rng.integers(0, len(sound) - len(DATA))
            content[at] = rng.choice(alphabet) if trial % 2 else rng.integers(256)
        with open(path, "r+b") as file:  # in place, which is faster than a new file
            file.write(content)
        try:
            tensors = open_safetensors(path)
        except ValueError:
            continue
        opened += 1
        # A changed name is still valid. The tensors that are read must fill the data exactly.
        assert b"".join(tensor.read().tobytes() for tensor in tensors.values()) == DATA
        assert [tensor.shape for tensor in tensors.values()] in ([(2, 3), (4,)], [(3, 2), (4,)])
    assert 0 < opened < 750  # both outcomes occur


def test_a_missing_or_unreadable_file_raises_an_os_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        open_safetensors(tmp_path / "no.safetensors")
    os.mkdir(tmp_path / "folder.safetensors")
    with pytest.raises(IsADirectoryError):
        open_safetensors(tmp_path / "folder.safetensors")
