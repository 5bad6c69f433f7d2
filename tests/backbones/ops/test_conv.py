"""Convolutions as matrix products, against the sum of the definition in float64."""

import itertools

import flax.linen as nn
import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest

import diffusers_fn as dfn
from diffusers_fn.backbones import ops
from diffusers_fn.backbones.ops import winograd
from diffusers_fn.backbones.ops.conv import _best_way, conv2d

# The method on a CPU: (shape of x, shape of the kernel, stride, padding)
CASES = {
    "winograd": ((4, 16, 16, 16), (3, 3, 16, 24), 1, (1, 1)),
    "winograd, odd sides": ((7, 13, 11, 16), (3, 3, 16, 16), 1, (1, 1)),
    "winograd, padded unevenly": ((8, 15, 14, 16), (3, 3, 16, 16), 1, (0, 2)),
    "winograd, chunks of images": ((11, 16, 16, 96), (3, 3, 96, 96), 1, (1, 1)),
    "winograd, bands of rows": ((2, 44, 58, 64), (3, 3, 64, 64), 1, (1, 1)),
    "product first": ((2, 6, 8, 16), (3, 3, 16, 3), 1, (1, 1)),
    "patches first": ((2, 6, 8, 3), (3, 3, 3, 16), 1, (1, 1)),
    "patches first, one image": ((1, 4, 4, 32), (3, 3, 32, 32), 1, (1, 1)),
    "patches first, stride": ((2, 8, 8, 16), (3, 3, 16, 16), 2, (0, 1)),
    "patches first, stride, odd": ((2, 9, 7, 16), (3, 3, 16, 16), 2, (1, 1)),
    "patches first, another kernel": ((2, 9, 7, 16), (5, 2, 16, 16), 1, ((2, 2), (1, 0))),
    "patches first, sequence": ((2, 9, 1, 16), (3, 1, 16, 16), 2, ((1, 1), (0, 0))),
}


def make(name: str) -> tuple[np.ndarray, np.ndarray, dict]:
    shape, kernel, stride, padding = CASES[name]
    rng = np.random.default_rng(0)
    x = rng.standard_normal(shape) + 0.5
    return x, rng.standard_normal(kernel) / np.sqrt(np.prod(kernel[:3])), {"stride": stride, "padding": padding}


def by_definition(x: np.ndarray, kernel: np.ndarray, stride: int, padding) -> np.ndarray:
    """y[i, j] = sum over a, b of x[stride i + a, stride j + b] k[a, b], in float64."""
    zeros = (padding, padding) if isinstance(padding[0], int) else padding
    x = np.pad(np.asarray(x, np.float64), ((0, 0), *zeros, (0, 0)))
    rows, columns = (side - extent + 1 for side, extent in zip(x.shape[1:3], kernel.shape))
    y = 0.0
    for a, b in itertools.product(range(kernel.shape[0]), range(kernel.shape[1])):
        y = y + x[:, a : a + rows : stride, b : b + columns : stride] @ np.asarray(kernel[a, b], np.float64)
    return y


def errors(got, exact) -> tuple[float, float]:
    difference = np.asarray(got, np.float64) - exact
    return np.sqrt(np.mean(difference**2)), np.abs(difference).max()


@pytest.mark.parametrize("name", CASES)
def test_agrees_with_the_definition_and_chooses_the_named_method(name):
    x, kernel, fields = make(name)
    exact = by_definition(x, kernel, **fields)
    got = jax.jit(lambda x, k: conv2d(x, k, **fields))(jnp.float32(x), jnp.float32(kernel))
    assert got.dtype == jnp.float32
    assert got.shape == exact.shape
    assert errors(got, exact)[1] < 1e-5 * np.abs(exact).max()
    zeros = fields["padding"] if isinstance(fields["padding"][0], tuple) else (fields["padding"],) * 2
    way = _best_way(x.shape, kernel.shape, fields["stride"], zeros)
    assert getattr(way, "func", way).__name__ == name.split(",")[0].replace(" ", "_")


@pytest.mark.parametrize("channels", [64, 512])
@pytest.mark.parametrize("mean", [0.0, 1.0])
def test_winograd_rounds_at_most_four_times_as_much_as_the_platform(channels, mean):
    rng = np.random.default_rng(1)
    x = (rng.standard_normal((2, 16, 32, channels)) + mean).astype(np.float32)
    kernel = (rng.standard_normal((3, 3, channels, 64)) / np.sqrt(9 * channels)).astype(np.float32)
    exact = by_definition(x, kernel, 1, (1, 1))
    ours = errors(jax.jit(conv2d)(x, kernel), exact)
    native = errors(jax.jit(lambda x, k: conv2d(x, k, native=True))(x, kernel), exact)
    assert ours[0] < 4 * native[0]
    assert ours[1] < 4 * native[1]


@pytest.mark.parametrize("points", [(0, 1, -1), (0, 2 / 3, -2 / 3, 3 / 2, -3 / 2), (0, 1, -1, 2, -2)])
def test_minimal_filters_are_correlations(points):
    a, g, b = winograd._minimal_filter(points)
    rng = np.random.default_rng(2)
    values, taps = rng.standard_normal(len(points) + 1), rng.standard_normal(3)
    np.testing.assert_allclose(a @ ((g @ taps) * (b @ values)), np.correlate(values, taps, "valid"), atol=1e-12)


@pytest.mark.long
@pytest.mark.parametrize("name", ["winograd, odd sides", "winograd, chunks of images", "winograd, bands of rows",
                                  "product first", "patches first, stride, odd"])  # fmt: skip
def test_derivatives_agree_with_those_of_the_platform_in_float64(name):
    """Both gradients, the directional derivative, and the gradient of a directional derivative."""
    with jax.enable_x64(True) if hasattr(jax, "enable_x64") else jax.experimental.enable_x64():
        x, kernel, fields = make(name)
        rng = np.random.default_rng(3)
        directions = rng.standard_normal(x.shape), rng.standard_normal(kernel.shape)

        def derivatives(x, kernel, directions, native):
            run = lambda x, k: conv2d(x, k, native=native, **fields)  # noqa: E731
            along = lambda x, k: jax.jvp(run, (x, k), directions)[1]  # noqa: E731
            gradients = jax.grad(lambda x, k: jnp.sum(jnp.sin(run(x, k))), (0, 1))(x, kernel)
            return gradients, along(x, kernel), jax.grad(lambda x, k: jnp.sum(jnp.sin(along(x, k))), (0, 1))(x, kernel)

        ours, native = (jax.jit(derivatives, static_argnums=3)(x, kernel, directions, flag) for flag in (False, True))
        for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(native)):
            np.testing.assert_allclose(a, b, atol=1e-11 * float(jnp.abs(b).max()))


def test_under_vmap_and_scan():
    x, kernel, fields = make("winograd, odd sides")
    x, kernels = jnp.float32(x), jnp.float32(np.stack([kernel, 2 * kernel]))
    each = jax.jit(jax.vmap(lambda k: conv2d(x, k, **fields)))(kernels)
    looped = jax.jit(lambda ks: jax.lax.scan(lambda _, k: (None, conv2d(x, k, **fields)), None, ks)[1])(kernels)
    for got in (each, looped):
        for y, factor in zip(got, (1, 2)):
            assert errors(y, factor * by_definition(x, kernel, **fields))[1] < 1e-5


def test_half_precision_is_rounded_once_on_a_cpu():
    x, kernel, fields = make("winograd")
    x, kernel = jnp.bfloat16(x), jnp.bfloat16(kernel)
    got = jax.jit(lambda x, k: conv2d(x, k, **fields))(x, kernel)
    exact = by_definition(np.float64(x), np.float64(kernel), **fields)
    assert got.dtype == jnp.bfloat16
    assert np.all(np.abs(np.float64(got) - exact) <= 2.0**-8 * np.abs(exact) + 1e-5)


@pytest.mark.parametrize(
    ("platform", "native", "convolutions"), [("cpu", False, 0), ("cpu", True, 3), ("cuda", False, 3)]
)
def test_each_platform_gets_its_own_program_for_gradients_too(platform, native, convolutions):
    x, kernel, fields = make("winograd")
    run = jax.value_and_grad(lambda x, k: conv2d(x, k, native=native, **fields).sum(), (0, 1))
    exported = jax.export.export(jax.jit(run), platforms=[platform])(jnp.float32(x), jnp.float32(kernel))
    assert exported.mlir_module().count("stablehlo.convolution(") == convolutions


@pytest.mark.long
def test_the_config_field_changes_no_more_than_rounding():
    fields = {"channels": 16, "image_size": 16, "channel_multipliers": (1, 2), "num_res_blocks": 1, "norm_groups": 4,
              "attention_resolutions": (), "zero_init_output": False}  # fmt: skip
    ours = dfn.backbones.UNet(**fields)
    x, t = jax.random.normal(jax.random.key(0), (8, 16, 16, 3)), jnp.arange(8)
    params = jax.jit(ours.init)(jax.random.key(1), x, t)
    native = dfn.backbones.UNet(native_conv=True, **fields)
    a, b = jax.jit(ours.apply)(params, x, t), jax.jit(native.apply)(params, x, t)
    np.testing.assert_allclose(a, b, atol=2e-5 * float(jnp.abs(b).max()))
    assert not np.array_equal(a, b)


def test_constants_cost_no_products():
    x, kernel, _ = make("winograd")
    x, kernel = jnp.float32(x), jnp.float32(kernel)

    def products(run, *args):
        return str(jax.make_jaxpr(lambda *args: jax.jvp(run, args, args)[1])(*args)).count("dot_general")

    both = products(conv2d, x, kernel)
    of_x = products(lambda x: conv2d(x, kernel), x)
    of_kernel = products(lambda kernel: conv2d(x, kernel), kernel)
    assert max(of_x, of_kernel) < both


@pytest.mark.parametrize("padding", ["SAME", "VALID", 1, ((0, 1), (2, 1)), (1, 0)])
@pytest.mark.parametrize(("sides", "kernel_size"), [((8, 6), (3, 3)), ((8, 7), (2, 3)), ((9,), (3,))])
@pytest.mark.parametrize("strides", [1, 2])
def test_the_layer_is_linens(sides, kernel_size, strides, padding):
    if isinstance(padding, tuple):
        padding = padding[: len(sides)]
    x = jnp.asarray(np.random.default_rng(4).standard_normal((2, *sides, 4)), jnp.float32)
    ours = ops.Conv(5, kernel_size, strides=strides, padding=padding)
    linens = nn.Conv(5, kernel_size, strides=strides, padding=padding)
    params = ours.init(jax.random.key(0), x)
    jax.tree.map(np.testing.assert_array_equal, params, linens.init(jax.random.key(0), x))
    np.testing.assert_allclose(ours.apply(params, x), linens.apply(params, x), atol=1e-5)


@pytest.mark.parametrize("remat", [False, True])
@pytest.mark.parametrize("native", [False, True])
def test_native_conv_reaches_every_convolution_of_a_network(native, remat):
    net = dfn.backbones.AutoencoderKL(
        channels=4, channel_multipliers=(1, 2), num_res_blocks=1, norm_groups=2, native_conv=native, remat=remat
    )
    x = jnp.zeros([1, 8, 8, 3])
    traced = str(jax.make_jaxpr(net.init_with_output)(jax.random.key(0), x))
    assert ("_by_products" in traced) != native
