"""Compiled products equal those of the dequantized weight, for every format, shape and way to be called; what they can't do, torch does."""

from __future__ import annotations

import copy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from lilliput.errors import ConfigError, ToolchainError
from lilliput.quantize import HalfQuadratic, LookupTable, RoundToNearest, SplitConfig, quantize
from lilliput.quantize.lowbit import matmul
from lilliput.quantize.lowbit import native as native_module
from lilliput.quantize.lowbit.config import Method
from lilliput.quantize.lowbit.matmul import MANY_INPUTS, can_compute, check_kernel, linear
from lilliput.quantize.lowbit.model import encode
from lilliput.quantize.lowbit.native import Native
from lilliput.quantize.lowbit.stored import StoredWeight, pack

COMPILER = next((path for name in ("cc", "gcc", "clang") if (path := shutil.which(name))), None)
needs_compiler = pytest.mark.skipif(COMPILER is None, reason="no C compiler")

METHODS: list[Method] = [
    SplitConfig(),
    SplitConfig(bits=1, k=2, granularity="tensor"),
    SplitConfig(storage="radix", granularity="tensor"),
    SplitConfig(storage="dense", mask_aware=False, clusters="tensor"),
    SplitConfig(storage="dense", mask_aware=False, granularity="group", group_size=32),
    SplitConfig(granularity="group", group_size=64),
    SplitConfig(granularity="group", group_size=128, scale_dtype="float32"),
    SplitConfig(bits=8, granularity="group", group_size=7),
    LookupTable(levels=16),
    LookupTable(levels=12, storage="radix"),
    LookupTable(levels=5, granularity="tensor", scale_dtype="float32"),
    RoundToNearest(bits=1, zero_point="middle"),
    RoundToNearest(bits=2, scale_dtype="float32"),
    RoundToNearest(bits=3),
    RoundToNearest(bits=4, granularity="tensor"),
    RoundToNearest(bits=6),
    RoundToNearest(bits=8, scale_dtype="float32"),
    *(RoundToNearest(bits=bits, granularity="group", group_size=size) for bits, size in ((2, 8), (3, 16), (4, 192))),
    *(RoundToNearest(bits=4, granularity="group", group_size=size, zero_point="float") for size in (128, 24)),
    HalfQuadratic(bits=2, group_size=64),
    HalfQuadratic(bits=4, group_size=32),
]
ids = [f"{method.name} {method.storage} {method.scale_dtype}" for method in METHODS]


def packed(method: Method, rows: int, columns: int, seed: int = 0) -> StoredWeight:
    generator = torch.Generator().manual_seed(seed)
    # Far below 1, so that the gain matters, and with a level per symbol at least.
    weight = torch.randn(rows, columns, generator=generator) ** 3 / 1000
    return pack(encode(weight, method), method.storage, (rows, columns))


def assert_is_product(got: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    """To 1e-4 of the sizes that are summed: in float64, so that only the kernel's own rounding counts."""
    exact = F.linear(x.double(), weight.double(), None if bias is None else bias.double())
    size = F.linear(x.double().abs(), weight.double().abs(), None if bias is None else bias.double().abs())
    assert got.shape == exact.shape
    assert bool(((got - exact).abs() <= 1e-5 * size).all())


@needs_compiler
@pytest.mark.parametrize("method", METHODS, ids=ids)
@settings(max_examples=8, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(
    rows=st.integers(1, 11),
    columns=st.integers(1, 300) | st.sampled_from([64, 128, 192, 256, 384]),
    batch=st.sampled_from([(), (0,), (1,), (2,), (3,), (4,), (5,), (2, 3), (MANY_INPUTS,), (2, 0, 3)]),
    has_bias=st.booleans(),
)
def test_products_equal_those_of_the_dequantized_weight(method, rows, columns, batch, has_bias):
    levels = getattr(method, "levels", 2)
    columns = max(columns, levels)
    stored = packed(method, rows, columns, seed=rows)
    bias = torch.randn(rows) / 100 if has_bias else None
    x = torch.randn(*batch, columns)
    assert_is_product(linear(x, stored, bias), x, stored.dequantize(), bias)


@needs_compiler
@pytest.mark.parametrize("method", [SplitConfig(), HalfQuadratic(bits=3)], ids=["rows", "groups"])
def test_strides_do_not_matter(method):
    stored, bias = packed(method, 6, 200), torch.randn(12)[::2]
    flat = torch.randn(200, 2 * 5 * 3)
    for x in (flat.T, flat.T[::2], flat.T.unflatten(0, (5, 6)).transpose(0, 1), torch.randn(1, 200).expand(4, 200)):
        assert_is_product(linear(x, stored, bias), x, stored.dequantize(), bias)


@needs_compiler
@pytest.mark.parametrize("threads", [2, 3, 64])
def test_threads_share_the_rows(threads, monkeypatch):
    stored, x = packed(SplitConfig(), 13, 140), torch.randn(3, 140)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    monkeypatch.setattr(matmul, "_WEIGHTS_PER_THREAD", 1)
    assert_is_product(linear(x, stored, None), x, stored.dequantize(), None)


@needs_compiler
@pytest.mark.parametrize("flags", [("-O1", "-mno-avx512f"), ("-O1", "-mno-avx", "-mno-avx2")], ids=["AVX2", "plain C"])
def test_narrower_instructions_compute_the_same(flags, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(native_module, "_FLAGS", ("-march=native", *flags))
    try:
        kernels = Native(native_module._library((COMPILER,)), "cc")
    except subprocess.CalledProcessError:
        pytest.skip(f"{COMPILER} has no {flags} for this processor")
    assert "AVX-512" not in kernels.name
    monkeypatch.setattr(matmul, "native", lambda: kernels)
    for method in METHODS:
        stored = packed(method, 5, 330)
        for batch in (1, 6, MANY_INPUTS):
            x = torch.randn(batch, 330)
            assert_is_product(linear(x, stored, None), x, stored.dequantize(), None)


@needs_compiler
def test_changed_buffers_are_read_anew():
    q = quantize(nn.Sequential(nn.Linear(40, 8, bias=False)), SplitConfig())
    other = quantize(nn.Sequential(nn.Linear(40, 8, bias=False)), SplitConfig())
    x = torch.randn(2, 40)
    assert_is_product(q(x), x, q.module[0].weight, None)
    q.load_state_dict(other.state_dict())  # in place
    assert_is_product(q(x), x, other.module[0].weight, None)
    q.module[0].packed.step = q.module[0].packed.step.float() * 2  # another tensor of another type
    assert_is_product(q(x), x, q.module[0].weight, None)
    assert not torch.allclose(q(x), other(x), atol=1e-3)
    assert torch.equal(copy.deepcopy(q)(x), q(x))


def calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows by one for each product of the compiled kernels."""
    from lilliput.quantize.lowbit import layers

    count: list[int] = []

    def counted(x: Tensor, stored: StoredWeight, bias: Tensor | None) -> Tensor:
        count.append(1)
        return linear(x, stored, bias)

    monkeypatch.setattr(layers, "linear", counted)
    return count


@needs_compiler
def test_layers_use_the_kernels_in_inference_and_torch_elsewhere(monkeypatch):
    count = calls(monkeypatch)
    torch.manual_seed(0)
    q = quantize(nn.Sequential(nn.Linear(30, 7)), SplitConfig())
    x = torch.randn(4, 30)
    expected = F.linear(x, q.module[0].weight, q.module[0].bias)
    with torch.inference_mode():
        torch.testing.assert_close(q(x), expected, rtol=1e-4, atol=1e-5)
    with torch.no_grad():
        q(x)
    assert len(count) == 2
    q(x).sum().backward()  # the bias learns
    assert q.module[0].bias.grad.tolist() == [4.0] * 7
    with_input = x.clone().requires_grad_()
    q(with_input).sum().backward()
    torch.testing.assert_close(with_input.grad, q.module[0].weight.sum(0).expand(4, 30))
    with torch.no_grad():
        torch.testing.assert_close(torch.func.vmap(q)(x), expected, rtol=1e-4, atol=1e-5)
        q.use_kernel("torch")
        assert torch.equal(q(x), expected)
        assert q.double()(x.double()).dtype == torch.float64
    assert len(count) == 2


def test_kernels_refuse_what_they_would_get_wrong(monkeypatch):
    stored = packed(SplitConfig(), 3, 20)
    x = torch.randn(2, 20)
    assert can_compute(x, stored, None)
    for other in (x.double(), x.to("meta"), nn.Parameter(x), x.clone().requires_grad_()):
        assert not can_compute(other, stored, None)
    assert not can_compute(x, stored, torch.zeros(3, dtype=torch.float64))
    with torch.autocast("cpu"):
        assert not can_compute(x, stored, None)
    assert not can_compute(x, copy.deepcopy(stored).double(), None)
    assert not can_compute(x, copy.deepcopy(stored).half(), None)
    for module, name in ((torch.compiler, "is_compiling"), (torch.jit, "is_tracing")):
        with monkeypatch.context() as patch:
            patch.setattr(module, name, lambda: True)
            assert not can_compute(x, stored, None)
    assert can_compute(x, stored, None)


def test_without_a_compiler_auto_says_torch_and_c_is_an_error(monkeypatch):
    q = quantize(nn.Sequential(nn.Linear(30, 7)), SplitConfig())
    monkeypatch.setattr(native_module, "_compilers", dict)
    native_module._load.cache_clear()
    try:
        assert "kernel=torch (no C compiler found)" in repr(q)
        with torch.no_grad():
            x = torch.randn(2, 30)
            assert torch.equal(q(x), F.linear(x, q.module[0].weight, q.module[0].bias))
        with pytest.raises(ToolchainError, match="no C compiler found; .*pip install ziglang.*use kernel='torch'"):
            q.use_kernel("c")
        monkeypatch.setattr(
            native_module, "_compilers", lambda: {"cc": (sys.executable, "-c", "raise SystemExit('no!')")}
        )
        native_module._load.cache_clear()
        assert "kernel=torch (cc fails: no!)" in repr(q)
    finally:
        native_module._load.cache_clear()
    assert repr(q.use_kernel("torch")).count("kernel=torch\n") == 1
    with pytest.raises(ConfigError, match="kernel='cuda': must be 'auto', 'c' or 'torch'"):
        check_kernel("cuda")


@needs_compiler
def test_the_library_is_compiled_once_and_whole(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(native_module, "_FLAGS", ("-O0",))
    runs: list[Path] = []
    run = native_module._run
    monkeypatch.setattr(native_module, "_run", lambda command: (runs.append(command), run(command))[1])
    first = native_module._library((COMPILER,))
    second = native_module._library((COMPILER,))
    assert first == second
    assert [path.name for path in first.parent.iterdir()] == [first.name]
    assert sum("-shared" in command for command in runs) == 1
