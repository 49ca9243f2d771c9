"""Scaled dot-product attention: values and gradients against torch in float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as torch_functional

import lucid
import lucid.nn.functional as F
from lucid.autograd import gradcheck, gradgradcheck
from tests.values import values_of
from triton_kernels.runtime import launch

_attend: Any = torch_functional.scaled_dot_product_attention

attend: Any = F.scaled_dot_product_attention

#: Shapes of query, key and value. Lengths are no multiples of tiles, and head sizes no powers of two.
SHAPES = {
    "one head": ((37, 20), (53, 20), (53, 24)),
    "heads": ((2, 3, 21, 16), (2, 3, 21, 16), (2, 3, 21, 16)),
    "broadcast keys": ((2, 3, 9, 8), (1, 3, 17, 8), (3, 17, 5)),
    "one query": ((4, 1, 33), (4, 70, 33), (4, 70, 33)),
    "more queries than keys": ((65, 7), (3, 7), (3, 2)),
}


def operands(name: str, dtype: str) -> Any:
    """Query, key and value, with the dimensions of heads and lengths exchanged in memory."""
    draw = np.random.default_rng(0)
    made: Any = []
    for shape in SHAPES[name]:
        swapped = (*shape[:-3], shape[-2], *shape[-3:-2], shape[-1])
        x = lucid.tensor(draw.normal(size=swapped), dtype=dtype)
        x = x.transpose(-2, -3).detach() if len(shape) > 2 else x
        made.append(x.requires_grad_())
    return made


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
@pytest.mark.parametrize("name", SHAPES)
def test_values_and_gradients_are_those_of_the_formula(name: str, dtype: str, causal: bool, tiles: str) -> None:
    ours: Any = operands(name, dtype)
    theirs = [torch.tensor(values_of(x), requires_grad=True) for x in ours]
    out = attend(*ours, is_causal=causal)
    lead = np.broadcast_shapes(*(x.shape[:-2] for x in ours))
    expanded = [x.expand(*lead, *x.shape[-2:]) for x in theirs]
    expected = _attend(*expanded, is_causal=causal)
    weights = lucid.tensor(np.random.default_rng(1).normal(size=out.shape), dtype=dtype)
    out.backward(weights)
    expected.backward(torch.from_numpy(values_of(weights)))
    assert out.dtype.name == dtype
    eps = {"float64": 2.0**-52, "float32": 2.0**-23}.get(dtype, torch.finfo(ours[0].dtype.torch).eps)
    pairs = [(out, expected.detach()), *((x.grad, y.grad) for x, y in zip(ours, theirs, strict=True))]
    for (result, truth), count in zip(pairs, (4, 16, 16, 8), strict=True):
        assert truth is not None
        error = np.abs(values_of(result) - truth.numpy()).max()
        # Probabilities and their gradients are rounded to the operands' dtype before the second products.
        assert error <= count * eps * (1 + np.abs(truth.numpy()).max())


@pytest.mark.parametrize("causal", [False, True])
def test_derivatives_match_finite_differences_twice(causal: bool) -> None:
    draw = np.random.default_rng(0)
    leaves = [lucid.tensor(draw.normal(size=shape), requires_grad=True) for shape in ((2, 3, 2), (2, 4, 2), (1, 4, 3))]
    function = lambda q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=causal, scale=0.7)  # noqa: E731
    assert gradcheck(function, leaves, fast_mode=True)
    assert gradgradcheck(function, leaves, fast_mode=True)


@pytest.mark.parametrize("kind", ["bool", "float", "broadcast"])
def test_masks_are_torchs_also_for_queries_that_see_nothing(kind: str) -> None:
    draw = np.random.default_rng(0)
    mask: Any = draw.normal(size=(37, 53)) > 0.3
    mask[5] = False
    if kind == "float":
        mask = np.where(mask, draw.normal(size=mask.shape), -np.inf)
    if kind == "broadcast":
        mask = mask[:1]
    ours: Any = operands("one head", "float64")
    theirs = [torch.tensor(values_of(x), requires_grad=True) for x in ours]
    out = attend(*ours, attn_mask=lucid.tensor(mask))
    expected = _attend(*theirs, attn_mask=torch.from_numpy(mask))
    out.sum().backward()
    expected.sum().backward()
    np.testing.assert_allclose(out.numpy(), expected.detach(), rtol=1e-12, atol=1e-13)
    for x, y in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(x.grad.numpy(), y.grad, rtol=1e-11, atol=1e-13)
    if kind != "broadcast":
        assert not out[5].numpy().any()


def test_a_float_mask_gets_a_gradient() -> None:
    draw = np.random.default_rng(0)
    leaves = [lucid.tensor(draw.normal(size=s), requires_grad=True) for s in ((3, 2), (4, 2), (4, 2), (3, 4))]
    assert gradcheck(lambda q, k, v, mask: F.scaled_dot_product_attention(q, k, v, mask), leaves, fast_mode=True)


def test_no_scores_are_in_memory_and_no_operand_is_copied() -> None:
    q, k, v = operands("heads", "float32")
    launched: list[launch.Launch] = []
    with launch.launch_hook(launched.append):
        out = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        out.backward(lucid.ones_like(out))
    names = [made.kernel.__name__ for made in launched]
    assert names == ["_attention_kernel", "_attention_dq_kernel", "_attention_dkdv_kernel"]
    for made in launched:
        assert made.args["q"][0].data_ptr() == q.data_ptr()
        assert max(t.numel() for t in map(launch.tensor_of, made.args.values()) if t is not None) == q.numel()


@pytest.mark.parametrize(("dtype", "width"), [("float32", 257), ("float64", 129)])
def test_heads_too_wide_for_a_program_have_scores_in_memory(dtype: str, width: int) -> None:
    draw = np.random.default_rng(2)
    for columns in (width, width - 1):
        q, k, v = (lucid.tensor(draw.normal(size=(3, columns)), dtype=dtype, requires_grad=True) for _ in range(3))
        made: list[launch.Launch] = []
        with launch.launch_hook(made.append):
            out = F.scaled_dot_product_attention(q, k, v)
        fused = "_attention_kernel" in [launched.kernel.__name__ for launched in made]
        assert fused == (columns < width)
        expected = _attend(*(torch.from_numpy(values_of(x)).double() for x in (q, k, v)))
        np.testing.assert_allclose(values_of(out), expected.numpy(), rtol=1e-5, atol=1e-6)


def test_no_keys_give_zeros_and_dropout_leaves_the_mean() -> None:
    q, k, v = lucid.ones(3, 2), lucid.ones(0, 2), lucid.ones(0, 4)
    for mask in (None, lucid.ones(3, 0), lucid.ones(3, 0, dtype="bool_")):
        assert F.scaled_dot_product_attention(q, k, v, mask).tolist() == [[0.0] * 4] * 3
    values = lucid.ones(64, 4)
    dropped = F.scaled_dot_product_attention(lucid.zeros(200, 2), lucid.zeros(64, 2), values, dropout_p=0.5)
    assert dropped.mean().item() == pytest.approx(1, abs=0.02)
    assert len(set(dropped[:, 0].tolist())) > 10


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"attn_mask": "upper"}, TypeError, "attn_mask must be a lucid.Tensor, got str"),
        (
            {"attn_mask": lucid.ones(3, 4, dtype="int64")},
            TypeError,
            "attn_mask must be of bool_ or a floating dtype",
        ),
        (
            {"attn_mask": lucid.ones(2, 3)},
            RuntimeError,
            r"attn_mask must have a shape that broadcasts to \(2, 3, 4\)",
        ),
        ({"attn_mask": lucid.ones(3, 4), "is_causal": True}, RuntimeError, "attn_mask must be None where is_causal is"),
        ({"dropout_p": 1.5}, ValueError, "dropout_p must be a number from 0 to 1, got 1.5"),
        ({"is_causal": 1}, TypeError, "is_causal must be a bool, got int"),
        ({"scale": float("inf")}, ValueError, "scale must be a finite number, got inf"),
        (
            {"key": lucid.ones(2, 4, 6)},
            RuntimeError,
            r"query \(..., L, E\), key .* must fit, got \(2, 3, 5\), ",
        ),
        ({"value": lucid.ones(2, 3, 5)}, RuntimeError, r"query \(..., L, E\), key .* must fit, got"),
        (
            {"key": lucid.ones(3, 4, 5)},
            RuntimeError,
            "query, key and value must have leading dimensions that",
        ),
        (
            {"value": lucid.ones(2, 4, 5).half()},
            RuntimeError,
            "query and value must have one dtype, got lucid.float32",
        ),
        ({"query": lucid.ones(5)}, RuntimeError, r"query must have at least two dimensions, got shape \(5,\)"),
        ({"query": lucid.ones(3, 5).long()}, TypeError, "query must be float16, bfloat16, float32 or float64, got"),
        ({"query": None}, TypeError, "query must be a lucid.Tensor, got NoneType"),
    ],
)
def test_what_does_not_fit_is_named(options: dict[str, Any], error: type[Exception], message: str) -> None:
    given = {"query": lucid.ones(2, 3, 5), "key": lucid.ones(2, 4, 5), "value": lucid.ones(2, 4, 5), **options}
    with pytest.raises(error, match=f"^{message}"):
        F.scaled_dot_product_attention(**given)
