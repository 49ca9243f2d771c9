"""Properties that hold for whatever shapes, strides, dtypes and values hypothesis thinks of."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

import lucid.nn.functional as F
import triton_kernels as tk
from tests.device import DEVICE
from tests.reference import FLOATS, exact
from tests.values import check_kl_div
from triton_kernels.runtime import strides

COMMON = settings(
    deadline=None,
    max_examples=80,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)

pytestmark = pytest.mark.usefixtures("launchers")

SPECIAL_X = [0.0, -0.0, -1.0, 1.0, -1e-7, -80.0, -1e4, -np.inf, np.inf, np.nan]
SPECIAL_P = [0.0, -0.0, 1.0, 0.5, 1e-7, 1 - 2.0**-11, 1e-30, 2.0, np.nan]


@st.composite
def strided(draw: Any, shape: tuple[int, ...], values: list[float]) -> torch.Tensor:
    """A tensor of a shape: permuted, with steps and margins, or expanded where a size is 1 in memory."""
    order = draw(st.permutations(range(len(shape))))
    steps = [draw(st.integers(1, 3)) for _ in shape]
    margins = [draw(st.integers(0, 2)) for _ in shape]
    repeated = [draw(st.booleans()) and draw(st.booleans()) for _ in shape]
    base_shape = [1 if repeated[d] else shape[d] * steps[d] + margins[d] for d in order]
    count = int(np.prod(base_shape))
    drawn = draw(st.lists(st.sampled_from(values), min_size=min(count, 12), max_size=min(count, 12)))
    base = torch.tensor((drawn * (count // max(len(drawn), 1) + 1))[:count], dtype=torch.float64).reshape(base_shape)
    dense = base.permute([order.index(d) for d in range(len(shape))])
    index = tuple(
        slice(None) if repeated[d] else slice(margins[d], margins[d] + shape[d] * steps[d], steps[d])
        for d in range(len(shape))
    )
    return dense[index].expand(shape)


@st.composite
def broadcastable(draw: Any) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Two shapes that broadcast."""
    full = draw(st.lists(st.integers(0, 5), max_size=4).map(tuple))

    def part() -> tuple[int, ...]:
        start = draw(st.integers(0, len(full)))
        return tuple(1 if draw(st.booleans()) and draw(st.booleans()) else size for size in full[start:])

    return part(), part()


def _to(tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """The same layout in another dtype: storage and all."""
    storage = torch.as_tensor(tensor.untyped_storage()).view(torch.float64).to(DEVICE, dtype)
    return storage.as_strided(tensor.shape, tensor.stride(), tensor.storage_offset())


@COMMON
@pytest.mark.usefixtures("tiles")
@given(st.data())
def test_the_loss_and_its_gradients_are_true(data: st.DataObject) -> None:
    x_shape, y_shape = data.draw(broadcastable())
    log_target = data.draw(st.booleans())
    reduction = data.draw(st.sampled_from(F.REDUCTIONS))
    assume(reduction != "batchmean" or x_shape)
    values = [-np.inf if p == 0 else float(np.log(p)) for p in SPECIAL_P] if log_target else SPECIAL_P
    dtypes = data.draw(st.sampled_from(FLOATS)), data.draw(st.sampled_from(FLOATS))
    x, y = _to(data.draw(strided(x_shape, SPECIAL_X)), dtypes[0]), _to(data.draw(strided(y_shape, values)), dtypes[1])
    p = exact(y.double().exp() if log_target else y)
    # What underflows in float32 is a zero target there.
    assume(torch.float64 in dtypes or not ((p > 0) & (p < 2.0**-126)).any())
    check_kl_div(x, y, log_target, reduction)


@COMMON
@given(st.data())
def test_softmax_of_any_layout_is_that_of_torch(data: st.DataObject) -> None:
    shape = data.draw(st.lists(st.integers(1, 6), min_size=1, max_size=4).map(tuple))
    dim = data.draw(st.integers(-len(shape), len(shape) - 1))
    log = data.draw(st.booleans())
    x = data.draw(strided(shape, [0.0, 1.0, -3.0, 20.0, -80.0, 1e4, -np.inf, np.nan])).to(DEVICE)
    got = tk.softmax_forward(x, dim, log=log)
    expected = x.log_softmax(dim) if log else x.softmax(dim)
    torch.testing.assert_close(got, expected, equal_nan=True, rtol=1e-12, atol=1e-12)


@COMMON
@given(st.data())
def test_a_walk_meets_every_element_once(data: st.DataObject) -> None:
    """Whatever is merged and reordered: element numbers lead to the operands' own elements."""
    shape = data.draw(st.lists(st.integers(1, 4), max_size=5).map(tuple))
    operands = [data.draw(strided(shape, [0.0])) for _ in range(data.draw(st.integers(1, 3)))]
    walk = strides.coalesce(shape, *operands)
    dense = walk.empty(shape, torch.float64, torch.device("cpu"))
    where = dense.as_strided((walk.numel,), (1,)).copy_(torch.arange(walk.numel, dtype=torch.float64))
    assert where.numel() == dense.numel()
    for operand, merged in zip(operands, walk.strides, strict=True):
        offsets = torch.zeros(shape, dtype=torch.int64)
        number = dense.to(torch.int64)
        for inner, stride in zip(reversed(walk.inner_sizes), reversed((merged or ())[1:]), strict=False):
            offsets += number % inner * stride
            number = number // inner
        offsets += number * ((merged or (0,))[0])
        expected = sum(
            (
                torch.arange(n).reshape([-1 if i == d else 1 for i in range(len(shape))]) * operand.stride(d)
                for d, n in enumerate(shape)
            ),
            start=torch.zeros(shape, dtype=torch.int64),
        )
        assert torch.equal(offsets, expected), (shape, operand.stride(), walk)


@COMMON
@given(st.data())
def test_a_sum_over_any_dimensions_is_that_of_torch(data: st.DataObject) -> None:
    shape = data.draw(st.lists(st.integers(0, 5), min_size=1, max_size=4).map(tuple))
    dims = data.draw(st.sets(st.integers(0, len(shape) - 1), min_size=1).map(sorted))
    x = data.draw(strided(shape, [1.0, 2.0, -0.5, 1e3])).to(DEVICE)
    keepdim = data.draw(st.booleans())
    got = tk.sum(x, dims, keepdim=keepdim)
    torch.testing.assert_close(got, x.sum(dims, keepdim=keepdim), rtol=1e-13, atol=1e-12)
