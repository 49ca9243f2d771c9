"""What `help` and `dir` show: docstring sections that losses have in common, and public names.

`help` shows each option where a user looks for it, and each is written once: a line of a docstring that holds a name in
braces alone, such as ``{temperature}``, is replaced when the module is imported.
"""

from __future__ import annotations

import difflib
import re
import sys
import textwrap
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

T = TypeVar("T")

_PLACEHOLDER = re.compile(r"^( *)\{(\w+)\}$", re.MULTILINE)

SECTIONS = {
    # kl_div
    "kl_div_formula": """
            log_target=False    y·(log y − x)
            log_target=True     exp(y)·(y − x)

        An element with p = 0 adds exactly 0 to the loss and to both gradients, also where x = −inf. (S. Kullback and
        R. A. Leibler, "On information and sufficiency", 1951, eq. 2.5, for discrete distributions.)""",
    "log_probabilities": """
        Log-probabilities, of any shape and strides: float16, bfloat16, float32 or float64.""",
    "kl_div_target": """
        target : Tensor
            Probabilities, or log-probabilities if `log_target`: of a shape that broadcasts with the other's, any
            floating dtype, on the same device. It may require a gradient.""",
    "kl_div_reduction": """
        reduction : {'mean', 'none', 'sum', 'batchmean'}
            'mean' (default): the sum over the number of elements of the broadcast shape. 'none': the terms, of the
            broadcast shape. 'sum': their sum. 'batchmean': the sum over the size of the first dimension, which is the
            divergence in nats for log-probabilities of shape (N, V).""",
    "log_target": """
        log_target : bool
            Whether the target holds log-probabilities. Default: False.""",
    "deprecated": """
        size_average, reduce : bool, optional
            Deprecated in torch, and here. Where one is given, the two decide instead of `reduction`: ``reduce=False``
            is 'none', else ``size_average=False`` is 'sum', else 'mean'. A warning names the reduction.""",
    "kl_div_returns": """
        Tensor
            0-d, or of the broadcast shape for 'none'; of the promoted dtype. The arithmetic is float32, or float64
            where either is, and the result is rounded once. First and second derivatives to both are available.""",
    # distillation_loss
    "divergences_of_logits": """
        Per token, with p = softmax(teacher_logits / T), q = softmax(student_logits / T) and T = temperature, in nats:

            forward_kl          Σ p·(log p − log q)                               Hinton et al. 2015
            reverse_kl          Σ q·(log q − log p)
            js                  beta·KL(p‖m) + (1 − beta)·KL(q‖m)                 Agarwal et al. 2024, eq. 1
                                with m = beta·p + (1 − beta)·q
            total_variation     ½·Σ |p − q|""",
    "computed_with_the_loss": """
        Where a gradient is wanted, it is computed with the loss: one launch reads each logit once and writes the
        gradient for an upstream gradient of 1, the only tensor of the logits' size. No logits are kept. Backward
        multiplies by the upstream gradient, exactly by a power of two, else with one more rounding, and moves nothing
        where it is 1; where the graph is kept for another backward pass, it multiplies a copy. Under ``no_grad()`` no
        gradient is computed. Within ``gradient_in_forward(False)``, and for float16, whose small gradients need the
        upstream gradient's scale, backward reads the logits again.""",
    "distillation_logits": """
        student_logits, teacher_logits : Tensor
            (..., V), any strides, each float16, bfloat16, float32 or float64, on one device; with the same leading
            dimensions, and the same V unless `vocab_size` is given. −inf is a logit like others. Gradients flow to
            both.""",
    "divergence": """
        divergence : {'forward_kl', 'reverse_kl', 'js', 'total_variation'}
            The first column of the table. Default: 'forward_kl'.""",
    "beta": """
        beta : float, optional
            Weight of the teacher in the mixture of 'js', above 0 and below 1; by default 0.5. An error with another
            divergence.""",
    "temperature": """
        temperature : float
            T, from 1e-15 to 1e15, which divides the logits of both. Default: 1.""",
    "temperature_squared": """
        temperature_squared : bool
            Multiply the divergence by T², so that the size of its gradients does not depend on T (Hinton et al. 2015,
            "Distilling the knowledge in a neural network", section 2). Default: False.""",
    "weight": """
        weight : Tensor, optional
            Factor on the loss of each token: bool or floating, of shape (...), without a gradient. Logits of a token of
            weight 0 are not read, may hold anything, and get a gradient of 0.""",
    "labels": """
        labels : Tensor, optional
            Label of each token: int32 or int64, of shape (...), from 0 to V − 1. A token labelled `ignore_index` counts
            as one of weight 0.""",
    "ignore_index": """
        ignore_index : int, optional
            Label of tokens that do not count; by default −100. An error where a loss is called without `labels`.""",
    "hard_label_weight": """
        hard_label_weight : float
            α, from 0 to 1: the loss of a token is (1 − α)·divergence + α·cross-entropy of the student, at temperature
            1, with its label; in the same pass. Above 0 it needs `labels`. Default: 0.""",
    "reduction": """
        reduction : {'mean', 'none', 'sum', 'batchmean'}
            With w the weights of tokens, 1 where none are given and 0 where labels are ignored, and l their losses.
            'mean' (default): Σ w·l / Σ w. 'none': w·l, of shape (...). 'sum': Σ w·l. 'batchmean': Σ w·l over the size
            of the first dimension.""",
    "normalizer": """
        normalizer : float or Tensor, optional
            Divisor of 'mean' or 'batchmean' in place of theirs, such as the number of tokens of all batches whose
            gradients are accumulated. Positive; 0 is accepted where no token counts. A Tensor is 0-d, and is read on
            its device.""",
    "vocab_size": """
        vocab_size : int, optional
            Number of columns that count, from the first, of padded or unequal vocabularies; the others get a gradient
            of 0. By default all, which must be equally many in both.""",
    "inplace_gradient": """
        inplace_gradient : bool
            Write the student's gradient over its logits as the loss is computed, which then allocates nothing of that
            size; in backward, where the gradient is computed there. The values of the logits are gone after that. A
            leaf, such as a parameter, is an error. Without effect where the student gets no gradient, as within
            ``no_grad()``. Default: False.""",
    "distillation_returns": """
        Tensor
            0-d, or of the leading dimensions' shape for 'none'; float32, or float64 where either is. 0, with a gradient
            of 0, where no token counts, that is, where all weights are 0. Where weights of either sign add up to 0
            while tokens count, 'mean' divides by 0: infinite or NaN.""",
    # linear_distillation_loss
    "from_hidden": """
        Logits are x = h·Wᵀ + b of hidden states h, a weight W and a bias b, as of a linear layer, times a scale, and
        with a softcap c they are c·tanh(scale·x/c). They exist for a chunk of rows at a time, so that their memory does
        not grow with the number of tokens. A chunk's logits are rounded to the dtype of the hidden states, or
        autocast's, as those of a linear layer are; its loss reads them once and writes their gradient over them, which
        is then multiplied with weight and hidden states. Training takes four matrix products, three without a gradient
        to the student's weight; evaluation two. Tokens that do not count are left out of the products, and may hold
        anything.

        Gradients are computed with the loss, and backward multiplies them by the upstream gradient. The loss of each
        token, reduction 'none', has upstream gradients that only backward knows; so does float16, whose small gradients
        need its scale: there, and within ``gradient_in_forward(False)``, backward computes the logits again.""",
    "from_hidden_labels": """
        Logits are x = h·Wᵀ + b of hidden states h, a weight W and a bias b, as of a linear layer, times a scale, and
        with a softcap k they are k·tanh(scale·x/k). Per row, with q their softmax, y the label, c the weights of
        classes, C their number and ε = `label_smoothing`, in nats:

            loss = (1 − ε)·c_y·(−log q_y) + ε/C·Σ c_v·(−log q_v)

        Logits exist for a chunk of rows at a time, so that their memory does not grow with the number of rows. Training
        takes three matrix products, evaluation one. Rows that do not count are left out, and may hold anything.
        Gradients are computed with the loss; in backward for reduction 'none', for float16 and within
        ``gradient_in_forward(False)``, where it computes the logits again.""",
    "hidden": """
        student_hidden, teacher_hidden : Tensor
            Hidden states (..., D), floating, any strides; the same leading dimensions, D may differ.""",
    "head": """
        student_weight, teacher_weight : Tensor
            (V, D) of each, of any floating dtype and strides; the same V, unless `vocab_size` is given. A weight of
            another dtype than the product's is converted once. Its gradient is summed over chunks in float32, and
            rounded once.""",
    "teacher_logits": """
        teacher_logits : Tensor, optional
            (..., V), in place of the teacher's hidden states, weight and bias. A scale and a softcap apply to them.""",
    "head_bias": """
        student_bias, teacher_bias : Tensor, optional
            (V,), floating; −inf masks a column. Default: none.""",
    "logit_maps": """
        student_logit_scale, teacher_logit_scale : float
            Factor on the logits, from 1e-15 to 1e15. Default: 1.
        student_softcap, teacher_softcap : float, optional
            Bound c of the logits, from 1e-15 to 1e15; −inf stays −inf. Default: none.""",
    "chunk_rows": """
        chunk_rows : int, optional
            Rows of a chunk. The same number gives the same bits. Another one changes the loss and the gradient to
            hidden states only where a matrix product adds up in another order for another number of rows.
        workspace_mib : float, optional
            MiB of memory for the logits of chunks, in place of `chunk_rows`; by default 256. Beside it there are the
            gradients; that of a weight shorter than float32 is summed over chunks in float32, V·D·4 bytes, before it is
            rounded. As much memory serves for logits before: the student's chunks have D rows, or all if these are at
            most 2·D, where that is more than the workspace holds. `chunk_rows` has none of that.""",
    "linear_gradients": """
        Gradients flow to hidden states, weights and biases of both, and to `teacher_logits`.""",
    # cross_entropy
    "cross_entropy_of_logits": """
        Per row, with q the softmax of the logits, c the weights of classes, C their number, ε = `label_smoothing`
        (Szegedy et al. 2016, "Rethinking the inception architecture", section 7), and a label y or probabilities p:

            loss = (1 − ε)·c_y·(−log q_y) + ε/C·Σ c_v·(−log q_v)
            loss = Σ c_v·((1 − ε)·p_v + ε/C)·(−log q_v)

        in nats. A class with a factor of 0 there adds exactly 0, also where its logit is −inf.""",
    "cross_entropy_reads": """
        The forward pass reads
        each logit and each probability once and keeps a few numbers per row; only gradients have the logits' size.""",
    "class_logits": """
        Logits of a floating dtype, (C,), (N, C) or (N, C, ...); any strides.""",
    "class_target": """
        target : Tensor
            Labels, int32 or int64, of the logits' shape without the dimension of classes; or class probabilities, of a
            floating dtype and the logits' shape, which get a gradient where they require one.""",
    "class_weight": """
        weight : Tensor, optional
            Weight of each class: (C,), floating, without a gradient. By default 1.""",
    "label_to_ignore": """
        ignore_index : int
            Label of rows that do not count: their logits are not read, and get a gradient of 0. Default: −100. With
            class probabilities another value is an error.""",
    "label_reduction": """
        reduction : {'mean', 'none', 'sum'}
            'mean' (default): the sum over that of the labels' c_y, or with class probabilities over the number of rows.
            'none': the loss of each row. 'sum': their sum.""",
    "label_smoothing": """
        label_smoothing : float
            ε, from 0 to 1. Default: 0.""",
    "cross_entropy_returns": """
        Tensor
            0-d, or of the logits' shape without the dimension of classes for 'none'; of the logits' dtype, or that of
            logits and probabilities promoted. 0 where no label counts.""",
}


def listing(names: Iterable[str]) -> Callable[[], list[str]]:
    """Return the ``__dir__`` of a module with these names, for completion: imports for its own use are left out."""
    return lambda: sorted(names)


def documented(described: T) -> T:
    """Fill the placeholders in the docstring of a function or class."""
    if described.__doc__:  # none under python -OO
        described.__doc__ = _PLACEHOLDER.sub(_section, described.__doc__)
    return described


def _section(match: re.Match[str]) -> str:
    indent, name = match.groups()
    return textwrap.indent(textwrap.dedent(SECTIONS[name].removeprefix("\n")), indent)


def left_out(where: str) -> Callable[[str], Any]:
    """Return a module's ``__getattr__``: an AttributeError which says that a name is not part of lucid-triton."""

    def refuse(name: str) -> Any:
        raise missing(where, name, sys.modules[where])

    return refuse


def missing(where: str, name: str, owner: object) -> AttributeError:
    """Return the error for a name that a module or an object does not have; it suggests a similar one."""
    # Protocols, such as copying and NumPy's, ask for names that begin with an underscore.
    similar = [] if name.startswith("_") else difflib.get_close_matches(name, dir(owner), 1)
    rest = f"did you mean {similar[0]}?" if similar else f"dir({where}) lists what is"
    return AttributeError(f"{where}.{name} is not part of lucid-triton: {rest}", name=name, obj=owner)
