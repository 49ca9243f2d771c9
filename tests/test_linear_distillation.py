"""linear_distillation_loss: values and gradients from hidden states against float64, in both front ends."""

from __future__ import annotations

import importlib
import importlib.util
import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor

import lucid
import lucid.nn as nn
import lucid.nn.functional as F
import lucid.torch
from lucid.ops import from_hidden
from lucid.torch import products
from lucid.torch.cpu.rows import chunk_size
from lucid.typing import REDUCTIONS
from perf.static.pairs import pairwise
from tests.allocations import Allocations
from tests.device import DEVICE
from tests.row_reference import DIVERGENCES
from triton_kernels.devtools import trace
from triton_kernels.runtime import backend, tile_configs

#: A stand-in for a GPU, which counts what compiled code moves.
EMULATE: Any = importlib.import_module("emulate") if importlib.util.find_spec("emulate") else None
INF = math.inf
#: Names of the tensors that may get a gradient.
NAMES = (
    *("student_hidden", "student_weight", "student_bias", "teacher_hidden", "teacher_weight", "teacher_bias"),
    "teacher_logits",
)
Tensors = dict[str, Tensor]


class Outcome(NamedTuple):
    """A loss and its gradients, as torch tensors."""

    loss: Tensor
    gradients: Tensors


class Front:
    """A front end, which takes and returns torch tensors here."""

    def __init__(self, kind: str) -> None:
        self.in_lucid, self.kernels = kind == "lucid", kind != "lucid.torch, torch's operators"

    def __call__(
        self, tensors: Tensors, *, frozen: tuple[str, ...] = (), dloss: Tensor | None = None, **options: Any
    ) -> Outcome:
        """Return the loss of tensors and its gradients to those that are not frozen."""
        options = {name: value for name, value in options.items() if value is not None}
        given: dict[str, Any] = {name: x.clone().to(DEVICE) for name, x in tensors.items()}
        options = {name: x.to(DEVICE) if isinstance(x, Tensor) else x for name, x in options.items()}
        upstream: Any = None if dloss is None else dloss.to(DEVICE)
        if self.in_lucid:
            given = {name: lucid.from_torch(x) for name, x in given.items()}
            options = {name: lucid.from_torch(x) if isinstance(x, Tensor) else x for name, x in options.items()}
            upstream = None if upstream is None else lucid.from_torch(upstream)
        wanted = {name: x.requires_grad_() for name, x in given.items() if name not in frozen}
        loss = (F if self.in_lucid else lucid.torch).linear_distillation_loss(**given, **options)
        if wanted:
            loss.backward(upstream)
        if self.in_lucid:
            return Outcome(
                loss.detach().to_torch().cpu(), {name: x.grad.to_torch().cpu() for name, x in wanted.items()}
            )
        return Outcome(loss.detach().cpu(), {name: x.grad.cpu() for name, x in wanted.items()})


KINDS = ["lucid", "lucid.torch, kernels"] + ["lucid.torch, torch's operators"] * backend.INTERPRETED


@pytest.fixture(params=KINDS)
def front(request: pytest.FixtureRequest) -> Iterator[Front]:
    with lucid.torch.kernels_on_cpu(request.param == KINDS[1] and backend.INTERPRETED):
        yield Front(request.param)


def mapped(x: Tensor, scale: float, cap: float | None) -> Tensor:
    """Logits times a scale, and softcapped; −inf is so small a number that its probability is 0."""
    y = x * scale
    return torch.where(x == -INF, -1e4, y if cap is None else cap * torch.tanh(y / cap))


def xlogy(p: Tensor, log: Tensor) -> Tensor:
    """p·log, 0 where p = 0, and so its derivative."""
    return p * torch.where(p > 0, log, 0.0)


def truth(tensors: Tensors, *, dloss: Tensor | None = None, **options: Any) -> Outcome:
    """The loss and its gradients in float64, from logits as a whole."""
    x = {name: tensor.double().clone().requires_grad_() for name, tensor in tensors.items()}
    get = options.get
    V = get("vocab_size")

    def logits(who: str) -> Tensor:
        if f"{who}_logits" in x:
            return x[f"{who}_logits"][..., :V]
        y = x[f"{who}_hidden"] @ x[f"{who}_weight"][:V].T
        return y + x[f"{who}_bias"][:V] if f"{who}_bias" in x else y

    s, t = (
        mapped(logits(who), get(f"{who}_logit_scale") or 1, get(f"{who}_softcap")) for who in ("student", "teacher")
    )
    T, kind, beta = get("temperature") or 1.0, get("divergence") or "forward_kl", get("beta") or 0.5
    log_q, log_p = (s / T).log_softmax(-1), (t / T).log_softmax(-1)
    q, p = log_q.exp(), log_p.exp()
    if kind == "forward_kl":
        losses = xlogy(p, log_p - log_q).sum(-1)
    elif kind == "reverse_kl":
        losses = xlogy(q, log_q - log_p).sum(-1)
    elif kind == "js":
        log_m = torch.logaddexp(math.log(beta) + log_p, math.log(1 - beta) + log_q)
        losses = (beta * xlogy(p, log_p - log_m) + (1 - beta) * xlogy(q, log_q - log_m)).sum(-1)
    else:
        losses = 0.5 * (p - q).abs().sum(-1)
    alpha, labels, weight = get("hard_label_weight") or 0.0, get("labels"), get("weight")
    losses = (1 - alpha) * losses * (T * T if get("temperature_squared") else 1)
    weights = torch.ones_like(losses) if weight is None else weight.double()
    if labels is not None:
        if alpha:
            losses = losses - alpha * s.log_softmax(-1).gather(-1, labels.clamp_min(0)[..., None]).squeeze(-1)
        weights = weights * (labels != -100)
    losses = torch.where(weights == 0, 0.0, losses) * weights
    reduction = get("reduction") or "mean"
    total = get("normalizer") or weights.sum()
    loss = {
        "none": losses,
        "sum": losses.sum(),
        "mean": losses.sum() / total,
        "batchmean": losses.sum() / math.prod(losses.shape[:1]),
    }
    loss[reduction].backward(None if dloss is None else dloss.double())
    gradients: Any = {name: tensor.grad for name, tensor in x.items()}
    return Outcome(loss[reduction].detach(), gradients)


def error(got: Tensor, expected: Tensor) -> float:
    """The norm of the difference, relative to that of what is expected."""
    norm = expected.double().norm()
    return ((got.double() - expected).norm() / torch.where(norm == 0, 1.0, norm)).item()


def assert_close(got: Outcome, expected: Outcome, budget: float, *, scale: float = 1.0) -> None:
    assert error(got.loss, expected.loss) <= budget * scale
    errors = {name: error(gradient, expected.gradients[name]) for name, gradient in got.gradients.items()}
    assert all(found <= budget * scale for found in errors.values()), errors


def layers(
    lead: tuple[int, ...] = (7,), V: int = 50, dtype: torch.dtype = torch.float32, widths: tuple[int, int] = (16, 24)
) -> Tensors:
    """Hidden states, weights and biases of both."""
    tensors = {}
    for who, width in zip(("student", "teacher"), widths, strict=True):
        tensors[f"{who}_hidden"] = torch.randn(*lead, width).to(dtype)
        tensors[f"{who}_weight"] = (torch.randn(V, width) / 2).to(dtype)
        tensors[f"{who}_bias"] = torch.randn(V).to(dtype)
    return tensors


def with_logits(tensors: Tensors, V: int = 50) -> Tensors:
    """The same student, and a teacher that is given by its logits."""
    kept = {name: x for name, x in tensors.items() if name.startswith("student")}
    return kept | {
        "teacher_logits": 2 * torch.randn(*kept["student_hidden"].shape[:-1], V).to(kept["student_hidden"].dtype)
    }


BUDGET = {torch.float32: 3e-6, torch.float64: 1e-13}


#: Any two values meet.
FACTORS = {
    "front": KINDS,
    "divergence": DIVERGENCES,
    "reduction": REDUCTIONS,
    "lead": ((7,), (2, 5), ()),
    "dtype": (torch.float32, torch.float64),
    "chunk_rows": (None, 3),
    "alpha": (0.0, 0.4),
    "case": ("hidden states", "logits", "padded", "weights", "labels"),
    "maps": ((1.0, None, 1.0, None), (0.5, 8.0, 1.0, 30.0), (2.0, None, 1.0, 3.0)),
    "in_forward": (True, False),
}
CASES = [tuple(case.values()) for case in pairwise(FACTORS)]


@pytest.mark.every_combination
@pytest.mark.parametrize(tuple(FACTORS), CASES, indirect=["front"], ids=map(str, range(len(CASES))))
def test_loss_and_all_gradients_are_those_of_float64(
    front: Front,
    divergence: str,
    reduction: str,
    lead: tuple[int, ...],
    dtype: torch.dtype,
    chunk_rows: int | None,
    alpha: float,
    case: str,
    maps: tuple[float, float | None, float, float | None],
    in_forward: bool,
) -> None:
    if not lead and reduction == "batchmean":
        reduction = "sum"
    V, names = 50, ("student_logit_scale", "student_softcap", "teacher_logit_scale", "teacher_softcap")
    tensors = layers(lead, V, dtype)
    options: dict[str, Any] = dict(zip(names, maps, strict=True)) | {"reduction": reduction, "divergence": divergence}
    options |= {"temperature": 2.0, "temperature_squared": True, "beta": 0.3 if divergence == "js" else None}
    if case == "logits":
        tensors = with_logits(tensors, V)
    elif case == "padded":
        tensors = {n: torch.cat((x, x[:3])) if n.endswith(("weight", "bias")) else x for n, x in tensors.items()}
        tensors["student_weight"] = torch.cat((tensors["student_weight"], tensors["student_weight"][:4]))
        tensors["student_bias"] = torch.cat((tensors["student_bias"], tensors["student_bias"][:4]))
        options["vocab_size"] = V
    elif case == "weights":
        options["weight"] = torch.rand(lead)
        options["weight"].view(-1)[5::6] = 0
    if case == "labels" or alpha:
        options["labels"] = torch.randint(V, lead)
        options["hard_label_weight"] = alpha
        if case == "labels":
            options["labels"].view(-1)[1::3] = -100
    dloss = torch.randn(lead if reduction == "none" else (), dtype=dtype)
    with lucid.gradient_in_forward(in_forward):
        got = front(tensors, dloss=dloss, chunk_rows=chunk_rows, **options)
    assert got.loss.dtype == dtype
    assert all(got.gradients[name].dtype == dtype for name in tensors)
    assert_close(got, truth(tensors, dloss=dloss, **options), BUDGET[dtype])


class TestTokensThatDoNotCount:
    @pytest.mark.parametrize("teacher", ["hidden states", "logits"])
    @pytest.mark.parametrize("waits", [True, False])
    def test_may_hold_anything_and_change_nothing(
        self, front: Front, teacher: str, waits: bool, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The others are gathered; or all are multiplied, where the host must not wait."""
        if front.kernels:  # torch's operators always gather
            monkeypatch.setattr(from_hidden, "may_wait", lambda *_: waits)
        tensors = layers((2, 4)) if teacher == "hidden states" else with_logits(layers((2, 4)))
        rows = [name for name in tensors if name.endswith(("hidden", "logits"))]
        labels = torch.tensor([[1, -100, 2, -100], [-100, 3, 49, 0]])
        expected = truth(tensors, labels=labels)
        for name in rows:
            tensors[name][labels == -100] = math.nan
        got = front(tensors, labels=labels, chunk_rows=3)
        assert_close(got, expected, 3e-6)
        for name in rows:
            assert (got.gradients[name][labels == -100] == 0).all()

    def test_leave_a_loss_of_0_and_gradients_of_0_where_there_are_no_others(self, front: Front) -> None:
        tensors = layers((5,))
        tensors["student_hidden"][:] = math.nan
        got = front(tensors, labels=torch.full((5,), -100), reduction="mean")
        assert got.loss == 0
        assert all((gradient == 0).all() for gradient in got.gradients.values())

    def test_are_in_no_product(self, monkeypatch: pytest.MonkeyPatch) -> None:
        multiply_adds = _count_products(monkeypatch)
        monkeypatch.setattr(from_hidden, "may_wait", lambda *_: True)
        weight = torch.tensor([1.0, 0, 0, 2, 0, 0, 0])
        Front("lucid.torch")(layers((7,), 50, widths=(16, 16)), frozen=NAMES[2:], weight=weight)
        assert sum(multiply_adds) == 4 * 2 * 50 * 16


def _count_products(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The multiply-adds of each product of lucid.torch from now on."""
    counted: list[int] = []
    product = products.matmul

    def matmul(a: Tensor, b: Tensor, bias: Tensor | None = None, **options: Any) -> Tensor:
        counted.append(a.shape[0] * a.shape[1] * b.shape[1])
        return product(a, b, bias, **options)

    monkeypatch.setattr(products, "matmul", matmul)
    return counted


@pytest.mark.parametrize(
    ("frozen", "count"),
    [
        (NAMES[2:], 4),
        (("student_weight", *NAMES[2:]), 3),
        (("student_hidden", *NAMES[2:]), 3),
        (NAMES, 2),
        ((), 6),
    ],
    ids=["training", "frozen head", "frozen body", "evaluation", "both trained"],
)
@pytest.mark.parametrize("chunk_rows", [None, 2])
def test_training_takes_four_products(
    monkeypatch: pytest.MonkeyPatch, frozen: tuple[str, ...], count: int, chunk_rows: int | None
) -> None:
    multiply_adds = _count_products(monkeypatch)
    tensors = {name: x for name, x in layers((7,), 50, widths=(16, 16)).items() if not name.endswith("bias")}
    Front("lucid.torch")(tensors, frozen=frozen, chunk_rows=chunk_rows)
    assert sum(multiply_adds) == count * 7 * 50 * 16


@pytest.mark.parametrize("who", ["student", "teacher", "both"])
@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_a_bias_of_minus_infinity_masks_a_column(front: Front, who: str, divergence: str) -> None:
    tensors = layers((5,))
    masked = {"student": ["student"], "teacher": ["teacher"], "both": ["student", "teacher"]}[who]
    for name in masked:
        tensors[f"{name}_bias"][::3] = -INF
    infinite = (who, divergence) in {("student", "forward_kl"), ("teacher", "reverse_kl")}
    got = front(tensors, divergence=divergence, student_softcap=20.0)
    if infinite:
        assert got.loss == INF
        return
    frozen = {name: x.clone() for name, x in tensors.items()}
    assert_close(got, truth(frozen, divergence=divergence, student_softcap=20.0), 3e-6)
    assert all(x.isfinite().all() for x in got.gradients.values())


@pytest.mark.parametrize("divergence", DIVERGENCES)
@pytest.mark.parametrize("chunk_rows", [None, 2])
def test_equal_distributions_of_padded_vocabularies_cost_exactly_0(
    front: Front, divergence: str, chunk_rows: int | None
) -> None:
    tensors = layers((5,), widths=(16, 16))
    for part in ("hidden", "weight", "bias"):
        tensors[f"teacher_{part}"] = tensors[f"student_{part}"].clone()
    tensors["teacher_weight"] = torch.cat((tensors["teacher_weight"], torch.randn(6, 16)))
    tensors["teacher_bias"] = torch.cat((tensors["teacher_bias"], torch.zeros(6)))
    got = front(tensors, divergence=divergence, vocab_size=50, chunk_rows=chunk_rows)
    assert got.loss == 0
    assert all((gradient == 0).all() for gradient in got.gradients.values())


@pytest.mark.parametrize("divergence", ["forward_kl", "reverse_kl", "js"])
@pytest.mark.parametrize("distance", [1e-1, 1e-3])
def test_a_student_close_to_its_teacher_keeps_its_digits(front: Front, divergence: str, distance: float) -> None:
    """Logits of float32 products have an error of their own: that of the loss is relative to the distance's."""
    tensors = layers((6,), 300, widths=(16, 16))
    for part in ("hidden", "weight", "bias"):
        tensors[f"teacher_{part}"] = tensors[f"student_{part}"].clone()
    tensors["student_hidden"] += distance * torch.randn(6, 16)
    got, expected = front(tensors, divergence=divergence), truth(tensors, divergence=divergence)
    assert got.loss >= 0
    assert_close(got, expected, 1e-6, scale=1 + 10 / distance)


@pytest.mark.parametrize("chunks", [1, 2, 16, 128])
def test_a_bfloat16_weights_gradient_is_as_good_as_one_rounding(front: Front, chunks: int) -> None:
    """Relative to the exact sum of what the rows' gradients contribute."""
    N, V = 128, 300
    tensors = {n: x for n, x in layers((N,), V, torch.bfloat16, (64, 64)).items() if not n.endswith("bias")}
    got = front(tensors, frozen=NAMES[2:], chunk_rows=N // chunks)
    s, t = (tensors[f"{w}_hidden"] @ tensors[f"{w}_weight"].T for w in ("student", "teacher"))
    of_logits = (
        torch.autograd.grad(lucid.torch.distillation_loss(s.to(DEVICE).requires_grad_(), t.to(DEVICE)), [])[0]
        if False
        else None
    )
    leaf = s.to(DEVICE).requires_grad_()
    lucid.torch.distillation_loss(leaf, t.to(DEVICE)).backward()
    of_logits = leaf.grad.cpu().double()
    for name, exact in {
        "student_weight": of_logits.T @ tensors["student_hidden"].double(),
        "student_hidden": of_logits @ tensors["student_weight"].double(),
    }.items():
        assert error(got.gradients[name], exact) <= 1.1 * error(exact.bfloat16(), exact)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_the_same_chunks_give_the_same_bits(front: Front, dtype: torch.dtype) -> None:
    tensors = layers((9,), dtype=dtype)
    first, second = (front(tensors, chunk_rows=4) for _ in range(2))
    assert torch.equal(first.loss, second.loss)
    assert all(torch.equal(first.gradients[name], second.gradients[name]) for name in tensors)


def test_the_size_of_chunks_changes_no_bit_of_the_loss_and_of_the_gradients_of_hidden_states_in_lucid() -> None:
    """With a GPU's tiles, which do not depend on the number of rows."""
    tensors = layers((40,))
    with tile_configs.use_tile_configs(interpreted=False):
        first, *others = [Front("lucid")(tensors, chunk_rows=size) for size in (40, 16, 7, 1)]
    for other in others:
        assert torch.equal(first.loss, other.loss)
        for name in ("student_hidden", "teacher_hidden"):
            assert torch.equal(first.gradients[name], other.gradients[name])


def test_dtypes_may_differ_and_gradients_have_those_of_their_tensors(front: Front) -> None:
    dtypes = dict(
        zip(
            NAMES,
            [torch.bfloat16, torch.float32, torch.float32, torch.float32, torch.bfloat16, torch.float16],
            strict=False,
        )
    )
    tensors = {name: x.to(dtypes[name]) for name, x in layers((9,)).items()}
    frozen = ("teacher_bias",)  # whose float16 gradients would be computed in backward
    got = front(tensors, frozen=frozen, chunk_rows=4)
    assert {name: g.dtype for name, g in got.gradients.items()} == {n: d for n, d in dtypes.items() if n not in frozen}
    assert got.loss.dtype == torch.float32
    # The student's product is in bfloat16, of a weight that is rounded; the teacher's in float32.
    rounded = tensors | {name: tensors[name].bfloat16() for name in ("student_weight", "student_bias")}
    assert_close(got, truth(rounded), 2e-2)


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_small_gradients_of_float16_keep_the_upstream_gradients_scale(front: Front, reduction: str) -> None:
    tensors = layers((64,), 500, torch.float16)
    scale = torch.full((64,) if reduction == "none" else (), 2.0**10)
    got = front(tensors, dloss=scale, reduction=reduction)
    assert_close(got, truth(tensors, dloss=scale, reduction=reduction), 1e-2)


@pytest.mark.parametrize("layout", ["transposed", "sliced", "expanded"])
def test_weights_and_hidden_states_may_be_strided(front: Front, layout: str) -> None:
    tensors = layers((3, 4), widths=(16, 16))
    expected = truth(tensors)

    def strided(x: Tensor) -> Tensor:
        if layout == "transposed":
            return x.transpose(0, 1).contiguous().transpose(0, 1)
        if layout == "sliced":
            return torch.cat((x, x), dim=-1)[..., : x.shape[-1]]
        return x

    given = {name: strided(x) if x.dim() > 1 else x for name, x in tensors.items()}
    if layout == "expanded":
        given["student_hidden"] = tensors["student_hidden"][:1].expand(3, 4, 16)
        expected = truth(tensors | {"student_hidden": given["student_hidden"]})
    assert_close(front(given), expected, 3e-6)


class TestTheUpstreamGradient:
    @pytest.mark.parametrize("upstream", [0.0, 1.0, -1.0, 0.3, 1024.0])
    @pytest.mark.parametrize("in_forward", [True, False])
    def test_multiplies_every_gradient(self, front: Front, upstream: float, in_forward: bool) -> None:
        tensors, dloss = layers((7,)), torch.tensor(upstream)
        with lucid.gradient_in_forward(in_forward):
            got = front(tensors, dloss=dloss, chunk_rows=3)
        assert_close(got, truth(tensors, dloss=dloss), 3e-6)

    @pytest.mark.parametrize("upstream", [INF, math.nan])
    def test_leaves_tokens_that_do_not_count_a_gradient_of_0(self, front: Front, upstream: float) -> None:
        labels = torch.tensor([1, -100, 2])
        got = front(layers((3,)), labels=labels, dloss=torch.tensor(upstream))
        for who in ("student", "teacher"):
            gradient = got.gradients[f"{who}_hidden"]
            assert (gradient[1] == 0).all()
            assert not gradient[0].isfinite().any()

    @pytest.mark.parametrize("upstream", [INF, math.nan])
    @pytest.mark.parametrize("reduction", ["mean", "sum"])
    def test_leaves_gradients_of_0_where_no_token_counts(self, front: Front, upstream: float, reduction: str) -> None:
        """As of a sum that is divided by a number of tokens, 0."""
        labels = torch.full((3,), -100)
        got = front(layers((3,)), labels=labels, dloss=torch.tensor(upstream), reduction=reduction)
        assert all((gradient == 0).all() for gradient in got.gradients.values())

    @pytest.mark.parametrize("reduction", ["mean", "none"])
    def test_may_come_twice_where_the_graph_is_kept(self, reduction: str) -> None:
        tensors = {name: x.to(DEVICE).requires_grad_() for name, x in layers((5,)).items()}
        loss = lucid.torch.linear_distillation_loss(**tensors, reduction=reduction)
        inputs = list(tensors.values())
        first = torch.autograd.grad(loss.sum(), inputs, retain_graph=True)
        second = torch.autograd.grad(3 * loss.sum(), inputs)
        for x, y in zip(first, second, strict=True):
            assert error(y, 3 * x) <= 1e-6

    @pytest.mark.parametrize("reduction", ["mean", "none"])
    def test_has_no_second_derivative_which_is_an_error(self, reduction: Any) -> None:
        message = "linear_distillation_loss has no second derivatives"
        x = {name: tensor.to(DEVICE).requires_grad_() for name, tensor in layers((5,)).items()}
        loss = lucid.torch.linear_distillation_loss(**x, reduction=reduction).sum()
        (gradient,) = torch.autograd.grad(loss, x["student_hidden"], create_graph=True)
        with pytest.raises(RuntimeError, match=message):
            gradient.sum().backward()
        y = {name: lucid.from_torch(tensor.to(DEVICE)).requires_grad_() for name, tensor in layers((5,)).items()}
        total = F.linear_distillation_loss(**y, reduction=reduction).sum()
        (made,) = lucid.autograd.grad(total, [y["student_hidden"]], create_graph=True)
        with pytest.raises(RuntimeError, match=message):
            made.sum().backward()


@pytest.mark.parametrize(
    "case", ["labels", "class weights", "smoothing", "weighted smoothing", "softcap", "none", "sum"]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("chunk_rows", [None, 3])
@pytest.mark.parametrize("in_forward", [True, False])
def test_linear_cross_entropy_and_its_gradients_are_those_of_float64(
    front: Front, case: str, dtype: torch.dtype, chunk_rows: int | None, in_forward: bool
) -> None:
    lead, V = (2, 4), 50
    x = {n.removeprefix("student_"): t for n, t in layers(lead, V, dtype).items() if n.startswith("student")}
    target = torch.randint(V, lead)
    target[0, 2] = target[1, 0] = -100
    options: dict[str, Any] = {"reduction": case if case in ("none", "sum") else "mean"}
    options |= {"label_smoothing": 0.1} if case.endswith("smoothing") else {}
    of_classes = torch.rand(V, dtype=dtype) if case in ("class weights", "weighted smoothing", "none") else None
    if case == "weighted smoothing":
        of_classes[target[0, 0]] = 0  # its row has a loss nevertheless
    maps = (0.5, 7.0) if case == "softcap" else (1.0, None)
    dloss = torch.randn(lead if case == "none" else (), dtype=dtype)

    exact = {name: tensor.double().clone().requires_grad_() for name, tensor in x.items()}
    logits = mapped(exact["hidden"] @ exact["weight"].T + exact["bias"], *maps)
    weight = None if of_classes is None else of_classes.double()
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), target.flatten(), weight, **options)
    loss.view(dloss.shape).backward(dloss.double())
    grads: Any = {name: tensor.grad for name, tensor in exact.items()}
    expected = Outcome(loss.detach().view(dloss.shape), grads)

    extra: dict[str, Any] = {} if of_classes is None else {"class_weight": of_classes.to(DEVICE)}
    given: dict[str, Any] = {name: tensor.to(DEVICE) for name, tensor in x.items()}
    labels: Any = target.to(DEVICE)
    upstream: Any = dloss.to(DEVICE)
    if front.in_lucid:
        given, extra = ({n: lucid.from_torch(t) for n, t in some.items()} for some in (given, extra))
        labels, upstream = lucid.from_torch(labels), lucid.from_torch(upstream)
    for tensor in given.values():
        tensor.requires_grad_()
    function = (F if front.in_lucid else lucid.torch).linear_cross_entropy
    with lucid.gradient_in_forward(in_forward):
        made = function(
            **given, target=labels, **extra, **options, logit_scale=maps[0], softcap=maps[1], chunk_rows=chunk_rows
        )
        made.backward(upstream)
    as_torch = (lambda t: t.detach().to_torch().cpu()) if front.in_lucid else (lambda t: t.detach().cpu())
    got = Outcome(as_torch(made), {name: as_torch(tensor.grad) for name, tensor in given.items()})
    assert_close(got, expected, BUDGET[dtype])


class TestBytes:
    @pytest.mark.interpreter_only
    @pytest.mark.parametrize("divergence", ["forward_kl", "js"])
    def test_beyond_the_products_each_logit_is_read_once_and_its_gradient_written_once(self, divergence: Any) -> None:
        """The products of lucid.torch are torch's, and not among the launches that are counted."""
        N, V = 24, 4000
        x = {n: t.requires_grad_(n.startswith("student")) for n, t in layers((N,), V, torch.bfloat16).items()}
        with lucid.torch.kernels_on_cpu(), trace.traffic() as moved:
            lucid.torch.linear_distillation_loss(**x, divergence=divergence, chunk_rows=8)
        logits = N * V * 2
        assert 2 * logits <= moved.read <= 2.01 * logits
        assert logits <= moved.written <= 1.01 * logits

    @pytest.mark.skipif(
        EMULATE is None or backend.INTERPRETED, reason="needs the stand-in for a GPU, ../shared/fakegpu"
    )
    @pytest.mark.parametrize("divergence", ["forward_kl", "js"])
    def test_so_they_are_by_compiled_code(self, divergence: Any) -> None:
        N, V = 24, 32_000
        x = {n: t.to(DEVICE).requires_grad_(n.startswith("student")) for n, t in layers((N,), V).items()}
        lucid.torch.linear_distillation_loss(**x, divergence=divergence, chunk_rows=8)
        with EMULATE.counted() as moved:
            lucid.torch.linear_distillation_loss(**x, divergence=divergence, chunk_rows=8)
        logits = N * V * 4
        assert 2 * logits <= moved.load_bytes <= 2.5 * logits
        assert logits <= moved.store_bytes <= 1.05 * logits

    @pytest.mark.skipif(DEVICE.type != "cuda", reason="asks a GPU's allocator")
    @pytest.mark.parametrize("divergence", ["forward_kl", "js"])
    def test_the_allocators_peak_is_gradients_sum_and_workspace(self, divergence: Any) -> None:
        N, V, D = 2048, 8000, 32
        x = {n: t.to(DEVICE) for n, t in layers((N,), V, widths=(D, D)).items()}
        for name in NAMES[:3]:
            x[name].requires_grad_()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        lucid.torch.linear_distillation_loss(**x, divergence=divergence, workspace_mib=8)
        made = torch.cuda.max_memory_allocated() - before
        gradients = 4 * (N * D + V * D + V)
        assert gradients < made <= gradients + 8 * 2**20 + 4 * N * 64

    @pytest.mark.parametrize("teacher", ["hidden states", "logits"])
    @pytest.mark.parametrize("ignored", [False, True])
    def test_no_tensor_has_an_element_per_token_and_column(self, teacher: str, ignored: bool) -> None:
        N, V, D, rows = 1024, 8000, 8, 128
        tensors = {n: t for n, t in layers((N,), V, widths=(D, D)).items() if not n.endswith("bias")}
        if teacher == "logits":
            tensors = {n: t for n, t in with_logits(tensors, V).items() if not n.endswith("bias")}
        x = {n: t.to(DEVICE).requires_grad_(n.startswith("student")) for n, t in tensors.items()}
        labels = torch.randint(V, (N,), device=DEVICE)
        labels[::2] = -100
        with Allocations(*x.values(), labels) as allocated:
            loss = lucid.torch.linear_distillation_loss(**x, chunk_rows=rows, labels=labels if ignored else None)
            loss.backward()
        of_operators = 7 * 4 * chunk_size()  # buffers of torch's operators on the CPU, whatever the shape
        assert of_operators < 4 * N * V / 2
        assert max(allocated.bytes) <= max(of_operators, 4 * rows * (V + 64))

    @pytest.mark.parametrize("columns", [128_256, 151_936, 32_000, 262_144])
    def test_logits_of_a_chunk_fill_256_mib_by_default(self, columns: int) -> None:
        for row_s, row_t in ((2 * columns, 2 * columns), (2 * columns, 4 * columns), (2 * columns, 0)):
            student, teacher = from_hidden.chunk_sizes(row_s, row_t, 2**28)
            assert student % 128 == teacher % 128 == 0
            assert 0.7 * 2**28 < student * row_s + teacher * row_t <= 2**28
            assert student >= teacher >= 128

    @pytest.mark.parametrize("teacher", ["hidden states", "logits"])
    def test_a_chunk_of_the_student_may_have_several_of_the_teacher(self, front: Front, teacher: str) -> None:
        workspace = 4 * 256 * 50 * 4
        assert from_hidden.chunk_sizes(50 * 4, 50 * 4, workspace) == (768, 256)
        tensors = layers((1000,))
        if teacher == "logits":
            tensors = with_logits(tensors)
        assert_close(front(tensors, workspace_mib=workspace / 2**20), truth(tensors), 3e-6)

    def test_a_small_workspace_takes_rows_one_by_one(self) -> None:
        tensors = layers((5,))
        got = Front("lucid.torch")(tensors, workspace_mib=1e-5)
        assert_close(got, truth(tensors), 3e-6)
        assert from_hidden.chunk_sizes(1000, 1000, 10) == (1, 1)

    @pytest.mark.parametrize(
        ("rows", "sums"),
        [
            (128, [(128, torch.bfloat16)]),
            (129, [(64, torch.float32), (64, torch.float32), (1, torch.float32)]),
        ],
        ids=["all", "some"],
    )
    def test_the_memory_of_a_bfloat16_weights_sum_holds_more_rows_of_the_student_before(
        self, monkeypatch: pytest.MonkeyPatch, rows: int, sums: list[tuple[int, torch.dtype]]
    ) -> None:
        """N·V·2 bytes of all gradients in place of V·D·4 of the sum, or of some in place of V·D·2, rounded."""
        V, D, made = 300, 64, []
        product = products.matmul

        def matmul(a: Tensor, b: Tensor, bias: Tensor | None = None, *, out: Tensor, **options: Any) -> Tensor:
            if out.shape == (V, D):
                made.append((a.shape[1], out.dtype))
            return product(a, b, bias, out=out, **options)

        monkeypatch.setattr(products, "matmul", matmul)
        tensors = {n: x for n, x in layers((rows,), V, torch.bfloat16, (D, D)).items() if not n.endswith("bias")}
        Front("lucid.torch")(tensors, frozen=NAMES[2:], workspace_mib=2 * 32 * V * 2 / 2**20)
        assert made == sums


class TestModules:
    def test_give_the_functions_loss_with_their_options(self) -> None:
        options: dict[str, Any] = {
            "temperature": 2.0,
            "student_softcap": 9.0,
            "teacher_logit_scale": 0.5,
            "chunk_rows": 3,
        }
        tensors = {name: x.to(DEVICE) for name, x in layers((2, 4)).items()}
        labels = torch.randint(50, (2, 4), device=DEVICE)
        module = lucid.torch.LinearDistillationLoss("js", beta=0.3, **options)
        expected = lucid.torch.linear_distillation_loss(**tensors, divergence="js", beta=0.3, labels=labels, **options)
        assert torch.equal(module(**tensors, labels=labels), expected)
        inside = nn.LinearDistillationLoss("js", beta=0.3, **options)
        of = {name: lucid.from_torch(x) for name, x in tensors.items()}
        got = inside(**of, labels=lucid.from_torch(labels))
        np.testing.assert_allclose(got.item(), expected.item(), rtol=1e-6)

    @pytest.mark.parametrize("make", [lucid.torch.LinearDistillationLoss, nn.LinearDistillationLoss])
    def test_show_the_options_that_are_not_as_by_default(self, make: Any) -> None:
        assert repr(make()) == "LinearDistillationLoss(divergence='forward_kl', temperature=1.0, reduction='mean')"
        shown = repr(make("js", student_logit_scale=0.5, workspace_mib=64))
        assert shown == (
            "LinearDistillationLoss(divergence='js', beta=0.5, temperature=1.0, reduction='mean', "
            "student_logit_scale=0.5, workspace_mib=64)"
        )
