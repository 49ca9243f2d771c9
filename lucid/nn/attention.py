"""Attention, which `lucid.nn.functional` exports."""

from __future__ import annotations

from lucid import ops
from lucid._arguments import check_bool, check_real
from lucid.nn.checks import broadcast_shape, check_device, check_floating, check_tensor
from lucid.tensor import Tensor


def scaled_dot_product_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
) -> Tensor:
    r"""Attention of queries to keys, softmax(scale·query·keyᵀ + attn_mask)·value.

    (A. Vaswani et al., "Attention is all you need", 2017, eq. 1.) Without a mask and dropout, forward and backward are
    fused: scores are never in memory, and backward computes them again.

    Parameters
    ----------
    query, key, value : Tensor
        (..., L, E), (..., S, E) and (..., S, D), of one floating dtype, any strides. Leading dimensions broadcast.
    attn_mask : Tensor, optional
        That broadcasts to (..., L, S): of bool_, whether a query sees a key; floating, what is added to the scores. A
        query that sees no key gets 0.
    dropout_p : float
        Probability with which a weight is zeroed; applied whenever it is above 0. Default: 0.
    is_causal : bool
        Query i sees keys 0 to i. Default: False.
    scale : float, optional
        Default: 1/√E.

    Returns
    -------
    Tensor
        (..., L, D), of the same dtype.

    Raises
    ------
    TypeError, ValueError
        If an argument is no lucid Tensor of the right dtype; if dropout_p is not from 0 to 1, or scale not finite.
    RuntimeError
        If dtypes, devices or shapes do not fit, or there is a mask, and attention is causal.

    Examples
    --------
    >>> import lucid
    >>> import lucid.nn.functional as F
    >>> x = lucid.tensor([[1.0], [3.0]])
    >>> F.scaled_dot_product_attention(lucid.zeros(2, 1), x, x, is_causal=True)
    tensor([[1.],
            [2.]])
    """
    operands = {"query": query, "key": key, "value": value}
    for name, tensor in operands.items():
        check_floating(name, tensor)
        check_device("query", query, name, tensor)
        if tensor.dtype != query.dtype:
            raise RuntimeError(f"query and {name} must have one dtype, got {query.dtype} and {tensor.dtype}")
        if tensor.ndim < 2:
            raise RuntimeError(f"{name} must have at least two dimensions, got shape {tensor.shape}")
    if query.shape[-1] != key.shape[-1] or key.shape[-2] != value.shape[-2]:
        raise RuntimeError(
            f"query (..., L, E), key (..., S, E) and value (..., S, D) must fit, got {query.shape}, {key.shape} and "
            f"{value.shape}"
        )
    lead = broadcast_shape(query.shape[:-2], key.shape[:-2])
    lead = None if lead is None else broadcast_shape(lead, value.shape[:-2])
    if lead is None:
        raise RuntimeError(
            "query, key and value must have leading dimensions that broadcast, got shapes "
            f"{query.shape}, {key.shape} and {value.shape}"
        )
    check_bool("is_causal", is_causal)
    p = check_real("dropout_p", dropout_p, "a number from 0 to 1", lambda p: 0 <= p <= 1)
    factor = 1 / max(query.shape[-1], 1) ** 0.5
    if scale is not None:
        factor = check_real("scale", scale, "a finite number", lambda _: True)
    if attn_mask is not None:
        if is_causal:
            raise RuntimeError("attn_mask must be None where is_causal is True, got both")
        check_tensor("attn_mask", attn_mask)
        check_device("query", query, "attn_mask", attn_mask)
        if not attn_mask.dtype.is_floating_point and attn_mask.dtype.name != "bool_":
            raise TypeError(f"attn_mask must be of bool_ or a floating dtype, got {attn_mask.dtype}")
        scores = (*lead, query.shape[-2], key.shape[-2])
        if broadcast_shape(attn_mask.shape, scores) != scores:
            raise RuntimeError(f"attn_mask must have a shape that broadcasts to {scores}, got {attn_mask.shape}")
    return ops.attention(query, key, value, attn_mask, p, is_causal, factor)
