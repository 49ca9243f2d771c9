"""What a loss whose gradient is computed with it needs besides: weights of rows before, the upstream gradient after."""

from __future__ import annotations

import torch
import triton.language as tl

from ..jit.tiles import load_row, load_tile, store_tile, tile_columns
from ..jit.tiles import token_weights as load_token_weights
from ..runtime import device_errors, launch, strides, tile_configs
from ..runtime.replay import replayable
from ..runtime.row_tiling import RowTiling, row_jit


@row_jit
def _token_weights_kernel(
    weight_ptr,  # (N,), or None
    labels_ptr,  # (N,), or None
    class_ptr,  # (V,), contiguous, or None
    report_ptr,  # of runtime.device_errors
    out_ptr,  # (N,)
    sizes,  # of the leading dimensions but the outermost; rows is their product: runtime.strides
    rows,
    V,
    weight_strides,
    labels_strides,
    ignore_index,
    ACC_DTYPE: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    offs_n = tl.program_id(0).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    mask_n = offs_n < rows
    weight, labels = (weight_ptr, weight_strides), (labels_ptr, labels_strides)
    w = load_token_weights(weight, labels, report_ptr, offs_n, sizes, mask_n, ignore_index, V, ACC_DTYPE)
    if class_ptr is not None:
        label = load_row(labels, offs_n, sizes, mask_n, 0, tl.int64)
        of_class = tl.load(class_ptr + label, mask=mask_n & (label >= 0) & (label < V) & (w != 0), other=0)
        w *= of_class.to(ACC_DTYPE)
    tl.store(out_ptr + offs_n, w, mask=mask_n)


@replayable
def token_weights(
    logits: torch.Tensor,
    *,
    weight: torch.Tensor | None = None,
    labels: torch.Tensor | None = None,
    class_weight: torch.Tensor | None = None,
    ignore_index: int = -100,
    vocab_size: int | None = None,
    dtype: torch.dtype = torch.float32,
) -> torch.Tensor:
    """Weights of the rows of logits, as losses of rows return them, without reading logits.

    Parameters
    ----------
    logits
        (..., V); only its shape counts.
    weight, labels
        Of the leading dimensions' shape. A label that is no column is reported by the next `raise_pending_errors`, and
        has weight NaN.
    class_weight
        (V,), dense: factors on the weights, by label.
    ignore_index
        Label of rows of weight 0.
    vocab_size
        The number of columns, if less than V.
    dtype
        float32 or float64, of the result.

    Returns
    -------
    torch.Tensor
        (rows,).

    Examples
    --------
    >>> logits, labels = torch.zeros(3, 5).to(DEVICE), torch.tensor([1, -100, 4]).to(DEVICE)
    >>> token_weights(logits, labels=labels).tolist()
    [1.0, 0.0, 1.0]
    """
    V = logits.shape[-1] if vocab_size is None else vocab_size
    rows = logits.numel() // max(logits.shape[-1], 1)
    config = tile_configs.tokens(rows)
    tiling = RowTiling(V, {"logits": logits}, {"weight": weight, "labels": labels}, config=config)
    out = torch.empty((tiling.rows,), dtype=dtype, device=logits.device)
    args = tiling.args("weight", "labels")
    del args["chunks"]
    launch.run(
        _token_weights_kernel,
        (tile_configs.cdiv(tiling.rows, config["BLOCK_N"]),),
        tile_configs.Config({"BLOCK_N": config["BLOCK_N"]}, config.num_warps),
        **args,
        class_ptr=class_weight,
        report_ptr=device_errors.buffer(logits.device),
        out_ptr=out,
        V=V,
        ignore_index=ignore_index,
        ACC_DTYPE=launch.tl_dtype(dtype),
    )
    return out


@row_jit
def _scale_kernel(
    x,  # (N, columns): (pointer, row strides, column stride, unit of the row strides)
    out,  # (N, columns); may be x
    dloss_ptr,  # (N,), or a scalar
    weights_ptr,  # (N,), or None
    sizes,  # of the leading dimensions but the outermost; rows is their product: runtime.strides
    rows,
    V,  # columns from V on are kept
    columns,
    chunks,
    tiles,  # of all rows
    dloss_strides,
    SCALAR: tl.constexpr,  # dloss is a scalar
    IN_PLACE: tl.constexpr,
    ACC_DTYPE: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_V: tl.constexpr,
):
    if SCALAR and IN_PLACE:
        if tl.load(dloss_ptr) == 1:
            return
    for tile in range(tl.program_id(0), tiles, tl.num_programs(0)):
        offs_n = (tile // chunks).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
        mask_n = offs_n < rows
        g = load_row((dloss_ptr, dloss_strides), offs_n, sizes, mask_n, 1, ACC_DTYPE)
        if weights_ptr is not None:  # the gradient of such rows stays 0 where dloss is infinite or NaN
            g = tl.where(tl.load(weights_ptr + offs_n, mask=mask_n, other=0) == 0, 1.0, g)
        if tl.max((g != 1).to(tl.int32), axis=0) > 0 or not IN_PLACE:
            offs_v = tile_columns(tile % chunks, columns, BLOCK_V)
            mask = mask_n[:, None] & (offs_v < columns)[None, :]
            values = load_tile(x, offs_n, offs_v, sizes, mask, 0, ACC_DTYPE)
            values = tl.where((offs_v < V)[None, :], values * g[:, None], values)
            store_tile(out, offs_n, offs_v, sizes, values, mask)


@replayable
def scale_gradient(
    gradient: torch.Tensor,
    dloss: torch.Tensor,
    *,
    weights: torch.Tensor | None = None,
    vocab_size: int | None = None,
    in_place: bool = False,
) -> torch.Tensor:
    """The gradient to logits, for an upstream gradient of 1, times the upstream gradient; in one launch.

    The product is rounded once; it is exact for a factor of 1 or another power of two, unless it overflows or
    underflows. In place, no memory is moved for a factor of 1.

    Parameters
    ----------
    gradient
        (..., V), of any floating dtype and strides.
    dloss
        0-d, or of the leading dimensions' shape; read on the device.
    weights
        (rows,): rows of weight 0 keep their gradient, which is 0.
    vocab_size
        The other columns keep their gradient, which is 0.
    in_place
        Overwrite `gradient`.

    Returns
    -------
    torch.Tensor
        `gradient`, or a new tensor of its shape and dtype, dense, with dimensions in its memory order.

    Examples
    --------
    >>> gradient, dloss = torch.tensor([[0.5, -0.5]]).to(DEVICE), torch.tensor(2.0).to(DEVICE)
    >>> scale_gradient(gradient, dloss).tolist()
    [[1.0, -1.0]]
    """
    out = gradient if in_place else strides.empty_as(gradient)
    V = gradient.shape[-1] if vocab_size is None else vocab_size
    columns = gradient.shape[-1]  # all, as a mask at an odd V makes accesses narrow
    tiling = RowTiling(columns, {"x": gradient, "out": out}, {"dloss": dloss}, whole_rows=False)
    tiles = tiling.grid[0]
    launch.run(
        _scale_kernel,
        (min(tiles, tile_configs.SCALING_PROGRAMS),),
        tiling.config,
        **tiling.args("x", "out", "dloss"),
        weights_ptr=weights,
        V=V,
        columns=columns,
        tiles=tiles,
        SCALAR=dloss.dim() == 0,
        IN_PLACE=in_place,
        ACC_DTYPE=launch.tl_dtype(launch.compute_dtype(gradient.dtype)),
    )
    return out
