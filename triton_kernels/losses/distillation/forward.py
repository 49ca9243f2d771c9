"""Divergences of rows of student logits s and teacher logits t, and their gradients, reading each logit once.

p = softmax(t/T) and q = softmax(s/T) are calculated in base 2. With x a row of either:

    row_max = max x,   z = log₂e/T·(x − row_max),   sum_exp = Σ 2^z        so that q = 2^z/sum_exp

`terms` has the math of each divergence, and `backward` the gradients; hard labels add logsumexp(s) − s[label], at
temperature 1. One launch does it all. A program holds one chunk of a row of s and t in registers. If the row has
several, it stores the chunk's maxima and sum_exps, waits for those of the others (`jit.chunk_flags`) and merges all in
order. That makes a KL and its gradients. JS, total variation and a small KL take the sum of the row's loss terms: the
program that is the last to store its chunk's adds them up, or, if the gradients need the sum, all do after a second
wait.

A row of more than `tile_configs.MAX_ROW_CHUNKS` tiles has chunks of several tiles, which are loaded again for each
step.
"""

from __future__ import annotations

import torch
import triton.language as tl

from ...jit import chunk_flags, math
from ...jit.tiles import (
    chunk_tile,
    load_row,
    program_tile,
    store_gradient,
    store_stat,
    tile_columns,
    token_weights,
    valid_labels,
)
from ...runtime import device_errors, launch, tile_configs
from ...runtime.replay import replayable
from ...runtime.row_tiling import RowTiling, row_jit
from .chunks import (
    chunk_stats,
    held,
    load_tiles,
    merged_stats,
    merged_sums,
    relative_to_row,
    store_chunk_stats,
    store_sums,
    sums_of_tiles,
    tile_sums,
)
from .terms import (
    DIVERGENCES,
    K_S,
    K_T,
    SMALL,
    STATISTICS,
    WEIGHT,
    add_label_gradient,
    cast_scalars,
    gradient_of,
    log2_ratio,
    row_sums,
    softmax_scales,
    store_stats,
)


@row_jit
def _divergence_kernel(
    s,  # (N, V): (pointer, row strides, column stride, unit of the row strides)
    t,  # (N, V)
    ds,  # (N, columns_s), or None; may be s
    dt,  # (N, columns_t), or None; may be t
    weight_ptr,  # (N,), or None
    labels_ptr,  # (N,), or None
    report_ptr,  # of runtime.device_errors
    factor_ptr,  # a scalar, or None: a factor on gradients
    losses_ptr,  # (N,)
    stats_ptr,  # (STATISTICS, N)
    partials_ptr,  # (STATISTICS, N, chunks), or None: rows have one chunk
    flags_ptr,  # (2, blocks of rows, chunks), zeros; or None
    sizes,  # of the leading dimensions but the outermost; rows is their product: runtime.strides
    rows,
    V,
    columns_s,  # V or more; gradients of columns from V on are 0
    columns_t,
    chunks,
    tiles,  # per chunk, or None: 1
    polls,  # of the flags of a row
    weight_strides,
    labels_strides,
    ignore_index,
    log2e_over_T: tl.float64,
    temperature: tl.float64,
    beta: tl.float64,
    divergence_scale: tl.float64,
    ce_scale: tl.float64,
    gradient_scale: tl.float64,
    factor_s: tl.float64,  # of `math.map_logits`, with MAP_S, as the next three
    cap_s: tl.float64,
    factor_t: tl.float64,
    cap_t: tl.float64,
    TERMS_FN: tl.constexpr,
    GRADIENTS_FN: tl.constexpr,
    ONE_PASS_FN: tl.constexpr,  # None unless the divergence is a KL, as the next two
    RESCALE_FN: tl.constexpr,
    ESTIMATE_FN: tl.constexpr,
    TO_S: tl.constexpr,  # with ds: Triton 3.6 cannot compare a tuple with None
    TO_T: tl.constexpr,  # with dt
    HARD: tl.constexpr,  # with hard labels
    SEPARATE_SUM_T1: tl.constexpr,  # hard labels and T ≠ 1: sum_s_T1 is a statistic beside sum_s
    MAP_S: tl.constexpr,  # of `math.logit_map`
    MAP_T: tl.constexpr,
    ACC_DTYPE: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_V: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    offs_n, mask_n, chunk = program_tile(rows, chunks, BLOCK_N)
    weight, labels = (weight_ptr, weight_strides), (labels_ptr, labels_strides)
    w = token_weights(weight, labels, report_ptr, offs_n, sizes, mask_n, ignore_index, V, ACC_DTYPE)
    active = mask_n & (w != 0)
    if tl.max(active.to(tl.int32), axis=0) == 0:  # no logits to read
        if chunk == 0:
            tl.store(losses_ptr + offs_n, tl.zeros_like(w), mask=mask_n)
            store_stat(stats_ptr, WEIGHT, rows, offs_n, w, mask_n)
        for i in range(0, 1 if tiles is None else tiles):
            tile, zero = chunk_tile(chunk, tiles, i), tl.zeros((BLOCK_N, BLOCK_V), ACC_DTYPE)
            if TO_S:
                store_gradient(ds, offs_n, active, mask_n, sizes, tile, zero, V, columns_s, BLOCK_V)
            if TO_T:
                store_gradient(dt, offs_n, active, mask_n, sizes, tile, zero, V, columns_t, BLOCK_V)
        return
    cast = cast_scalars(log2e_over_T, temperature, beta, divergence_scale, ce_scale, ACC_DTYPE)
    scalars = (
        cast[0], cast[1], cast[2], cast[3], cast[4],
        tl.full((), factor_s, ACC_DTYPE) if MAP_S >= 1 else None,
        tl.full((), cap_s, ACC_DTYPE) if MAP_S == 2 else None,
        tl.full((), factor_t, ACC_DTYPE) if MAP_T >= 1 else None,
        tl.full((), cap_t, ACC_DTYPE) if MAP_T == 2 else None,
    )  # fmt: skip
    label = offs_n  # not used unless HARD
    if HARD:
        label = valid_labels(load_row(labels, offs_n, sizes, active, -1, tl.int64), V)
    WHOLE_ROW: tl.constexpr = partials_ptr is None
    IS_KL: tl.constexpr = ONE_PASS_FN is not None
    PARTS: tl.constexpr = 4 if BLOCK_V >= 512 else 1
    partials = (partials_ptr, offs_n, tl.cast(rows, tl.int64) * chunks, chunks)
    flags = flags_ptr  # not used if WHOLE_ROW
    if WHOLE_ROW:
        own, stats = chunk_stats(
            s, t, offs_n, active, sizes, chunk, tiles, V, label, scalars, ONE_PASS_FN, RESCALE_FN, HARD,
            SEPARATE_SUM_T1, BLOCK_V,
        )  # fmt: skip
        x_s, x_t, e_s, e_t, diff, tile_max_s, tile_max_t = own
    else:
        flags += (tl.program_id(0) - chunk).to(tl.int64)
        x_s = tl.zeros((BLOCK_N, BLOCK_V), ACC_DTYPE)
        x_t, e_s, e_t, diff = x_s, x_s, x_s, x_s
        tile_max_s = tl.zeros((BLOCK_N,), ACC_DTYPE)
        tile_max_t = tile_max_s
        todo, polls_left = chunk, polls
        while todo >= 0:
            loaded, found = chunk_stats(
                s, t, offs_n, active, sizes, todo, tiles, V, label, scalars, ONE_PASS_FN, RESCALE_FN, HARD,
                SEPARATE_SUM_T1, BLOCK_V,
            )  # fmt: skip
            x_s, x_t, e_s, e_t, diff, tile_max_s, tile_max_t = loaded
            if chunk_flags.may_publish(flags, todo, chunk):
                store_chunk_stats(partials, todo, active, found, IS_KL, HARD, SEPARATE_SUM_T1)
                chunk_flags.publish(flags + todo)
            todo, polls_left = chunk_flags.next_chunk(flags, todo, chunk, chunks, polls_left, BLOCK_C)
        stats = merged_stats(partials, active, scalars, RESCALE_FN, HARD, SEPARATE_SUM_T1, BLOCK_C)
        flags += tl.num_programs(0)  # of the second wait
    max_s, sum_s, max_t, sum_t, sum_s_T1, cross, x_label = stats
    row_stats = (max_s, sum_s, max_t, sum_t, sum_s_T1)
    log2e_over_T, temperature, beta, divergence_scale, ce_scale = (
        scalars[0], scalars[1], scalars[2], scalars[3], scalars[4],
    )  # fmt: skip
    stores_loss = chunk == 0
    if IS_KL:
        loss = ESTIMATE_FN(cross, sum_s, sum_t, log2e_over_T)
        k_s, k_t = loss, loss
        small = active & (loss < SMALL)
        if tl.max(small.to(tl.int32), axis=0) > 0:
            # From memory, part by part: from registers this would take so many that fewer programs fit the GPU.
            parts = (1 if tiles is None else tiles) * PARTS
            loss_sum, _ = sums_of_tiles(
                s, t, offs_n, active, sizes, chunk * parts, parts, V, row_stats, scalars, TERMS_FN, BLOCK_V // PARTS
            )
            if not WHOLE_ROW:
                store_sums(partials, chunk, active, loss_sum, loss_sum, IS_KL)
                stores_loss = chunk_flags.arrive(flags) == chunks - 1
                loss_sum, _ = merged_sums(partials, active & stores_loss, IS_KL, BLOCK_C)
            loss = tl.where(small, loss_sum, loss)
        h_s, h_t = e_s, e_t  # not used
    else:
        h_s, h_t = tl.zeros_like(e_s), tl.zeros_like(e_t)
        loss_sum, aux_sum = tl.zeros_like(sum_s), tl.zeros_like(sum_s)
        # Without gradients only the last program to arrive needs the sums.
        todo, polls_left = chunk, polls
        while todo >= 0:
            loaded = (x_s, x_t, e_s, e_t, diff, tile_max_s, tile_max_t)
            loss_sum, aux_sum, h_s, h_t = tile_sums(loaded, row_stats, scalars, TERMS_FN)
            if tiles is not None:
                rest = sums_of_tiles(
                    s,
                    t,
                    offs_n,
                    active,
                    sizes,
                    chunk_tile(todo, tiles, 1),
                    tiles - 1,
                    V,
                    row_stats,
                    scalars,
                    TERMS_FN,
                    BLOCK_V,
                )
                loss_sum, aux_sum = loss_sum + rest[0], aux_sum + rest[1]
            if WHOLE_ROW:
                todo = -1
            elif TO_S or TO_T:
                if chunk_flags.may_publish(flags, todo, chunk):
                    store_sums(partials, todo, active, loss_sum, aux_sum, IS_KL)
                    chunk_flags.publish(flags + todo)
                todo, polls_left = chunk_flags.next_chunk(flags, todo, chunk, chunks, polls_left, BLOCK_C)
                if todo >= 0:
                    x_s, x_t = load_tiles(s, t, offs_n, active, sizes, chunk_tile(todo, tiles, 0), V, scalars, BLOCK_V)
                    x_s, x_t, e_s, e_t, diff, tile_max_s, tile_max_t = held(x_s, x_t, scalars)
            else:
                store_sums(partials, todo, active, loss_sum, aux_sum, IS_KL)
                stores_loss = chunk_flags.arrive(flags) == chunks - 1
                todo = -1
        if not WHOLE_ROW:
            loss_sum, aux_sum = merged_sums(partials, active, IS_KL, BLOCK_C)
        loss, k_s, k_t = row_sums(loss_sum, aux_sum, sum_s, sum_t)
    if stores_loss:
        loss *= divergence_scale
        if HARD:
            z_label = (x_label - math.neg_inf_to_zero(max_s)) * log2e_over_T * temperature
            loss += (math.log(sum_s_T1) - z_label * math.LN_2) * ce_scale
        tl.store(losses_ptr + offs_n, tl.where(active, w * loss, 0.0), mask=mask_n)
        store_stat(stats_ptr, WEIGHT, rows, offs_n, w, mask_n)
        store_stats(stats_ptr, rows, offs_n, row_stats, active, SEPARATE_SUM_T1=True)
        store_stat(stats_ptr, K_S, rows, offs_n, k_s, active)
        store_stat(stats_ptr, K_T, rows, offs_n, k_t, active)
    if TO_S or TO_T:
        g = w * tl.full((), gradient_scale, ACC_DTYPE)
        if factor_ptr is not None:
            g *= tl.load(factor_ptr).to(ACC_DTYPE)
        g_divergence = g * divergence_scale / temperature
        for i in range(0, 1 if tiles is None else tiles):
            tile = chunk_tile(chunk, tiles, i)
            if tiles is not None:
                x_s, x_t = load_tiles(s, t, offs_n, active, sizes, tile, V, scalars, BLOCK_V)
                x_s, x_t, e_s, e_t, diff, tile_max_s, tile_max_t = relative_to_row(x_s, x_t, row_stats, scalars)
            inv_s, inv_t, constant = softmax_scales(tile_max_s, tile_max_t, row_stats, log2e_over_T)
            if IS_KL or tiles is not None:
                r = log2_ratio(diff, constant, log2e_over_T)
                to_s, to_t = GRADIENTS_FN(e_s, e_t, r, inv_s, inv_t, k_s, k_t, beta, g_divergence)
            else:
                to_s = gradient_of(h_s, e_s, inv_s, k_s, g_divergence)
                to_t = gradient_of(h_t, e_t, inv_t, k_t, g_divergence)
            if HARD:
                offs_v = tile_columns(tile, V, BLOCK_V)
                to_s = add_label_gradient(
                    to_s, x_s, e_s, inv_s, row_stats, offs_v, label, g * ce_scale, scalars, SEPARATE_SUM_T1
                )
            if TO_S:
                to_s = math.to_unmapped(to_s, x_s, scalars[5], scalars[6])
                store_gradient(ds, offs_n, active, mask_n, sizes, tile, to_s, V, columns_s, BLOCK_V)
            if TO_T:
                to_t = math.to_unmapped(to_t, x_t, scalars[7], scalars[8])
                store_gradient(dt, offs_n, active, mask_n, sizes, tile, to_t, V, columns_t, BLOCK_V)


@replayable
def divergence_forward(
    student: torch.Tensor,
    teacher: torch.Tensor,
    *,
    divergence: str = "forward_kl",
    beta: float = 0.5,
    inv_temperature: float = 1.0,
    scale: float = 1.0,
    weight: torch.Tensor | None = None,
    labels: torch.Tensor | None = None,
    ignore_index: int = -100,
    hard_label_weight: float = 0.0,
    vocab_size: int | None = None,
    gradient_scale: float = 1.0,
    gradient_factor: torch.Tensor | None = None,
    dstudent: torch.Tensor | None = None,
    dteacher: torch.Tensor | None = None,
    student_scale: float = 1.0,
    student_softcap: float | None = None,
    teacher_scale: float = 1.0,
    teacher_softcap: float | None = None,
    polls: int | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """weight·((1 − α)·scale·divergence + α·cross-entropy) of each row of logits, with α = `hard_label_weight`.

    Parameters
    ----------
    student, teacher
        Logits (..., V), of floating dtypes and any strides; the same leading dimensions.
    divergence
        'forward_kl', 'reverse_kl', 'js' (with `beta`, the teacher's part of the mixture) or 'total_variation'.
    inv_temperature
        Positive; logits are multiplied by it.
    scale
        A factor on the divergence, such as T².
    weight
        Of the leading dimensions' shape, bool or floating. Logits of a row of weight 0 are not read.
    labels
        int32 or int64, of the same shape; `ignore_index` marks rows that are not read either.
    hard_label_weight
        α, the weight of the student's cross-entropy with the labels, at temperature 1.
    vocab_size
        Only the first `vocab_size` columns count; by default all, and both have equally many.
    gradient_scale, gradient_factor
        Factors on the gradients: a number, and a 0-d tensor that is read on the device.
    dstudent, dteacher
        Where the gradients to the logits are written, for an upstream gradient of 1 to each loss: tensors of their
        shapes, or None. `dstudent` may be `student` itself, and `dteacher` `teacher`, if that is not expanded and the
        two share no memory.
    student_scale, student_softcap, teacher_scale, teacher_softcap
        Logits are softcap·tanh(scale·x/softcap), or scale·x where softcap is None, of the x that are given. Gradients
        are to these x. Both numbers are positive; −inf stays −inf.
    polls
        How often a program polls for the statistics of other chunks before it computes them itself.

    Returns
    -------
    tuple
        Losses, of the leading dimensions' shape, float32 (float64 where either is); and the rows' statistics,
        (STATISTICS, rows), for `divergence_backward`, of which the first are the weights, 0 where a row is not read.

    Examples
    --------
    >>> s, t = torch.tensor([[0.0, 0.0]]).to(DEVICE), torch.tensor([[0.0, 1.0]]).to(DEVICE)
    >>> ds = torch.empty_like(s)
    >>> losses, statistics = divergence_forward(s, t, dstudent=ds)
    >>> round(losses.item(), 4), [round(x, 4) for x in ds[0].tolist()]
    (0.1109, [0.2311, -0.2311])
    """
    fns = DIVERGENCES[divergence]
    V = student.shape[-1] if vocab_size is None else vocab_size
    # With `vocab_size` logits have columns beyond V, whose gradients are written, too.
    columns = max([V] + [gradient.shape[-1] for gradient in (dstudent, dteacher) if gradient is not None])
    tensors = {"s": student, "t": teacher, "ds": dstudent, "dt": dteacher}
    hard = hard_label_weight != 0
    factor_s, cap_s, map_s = math.logit_map(student_scale, student_softcap)
    factor_t, cap_t, map_t = math.logit_map(teacher_scale, teacher_softcap)
    # Hard labels, a second gradient and softcaps take more, and would be spilled.
    plain = dteacher is None and not hard and map_s < 2 and map_t < 2
    registers = fns.registers if plain else tile_configs.MOST_REGISTERS
    crowded = dteacher is not None and max(map_s, map_t) == 2
    tiling = RowTiling(columns, tensors, {"weight": weight, "labels": labels}, meeting=registers, crowded=crowded)
    dtype = launch.compute_dtype(student.dtype, teacher.dtype)
    losses = torch.empty(student.shape[:-1], dtype=dtype, device=student.device)
    stats = torch.empty((STATISTICS, tiling.rows), dtype=dtype, device=student.device)
    partials, flags = None, None
    if tiling.chunks > 1:
        partials = torch.empty((STATISTICS, tiling.rows, tiling.chunks), dtype=dtype, device=student.device)
        flags = launch.zeros((2, *tiling.grid), dtype=torch.int32, device=student.device)
    log2e_over_T, temperature = math.base2_scalars(inv_temperature)
    launch.run(
        _divergence_kernel,
        tiling.grid,
        tiling.config,
        **tiling.args("s", "t", "ds", "dt", "weight", "labels"),
        report_ptr=device_errors.buffer(student.device),
        factor_ptr=gradient_factor,
        losses_ptr=losses,
        stats_ptr=stats,
        partials_ptr=partials,
        flags_ptr=flags,
        V=V,
        columns_s=student.shape[-1],
        columns_t=teacher.shape[-1],
        tiles=tiling.tiles,
        polls=tile_configs.polls() if polls is None else polls,
        ignore_index=ignore_index,
        log2e_over_T=log2e_over_T,
        temperature=temperature,
        beta=beta,
        divergence_scale=(1 - hard_label_weight) * scale,
        ce_scale=hard_label_weight,
        gradient_scale=gradient_scale,
        factor_s=factor_s,
        cap_s=cap_s,
        factor_t=factor_t,
        cap_t=cap_t,
        TERMS_FN=fns.terms,
        GRADIENTS_FN=fns.gradients,
        ONE_PASS_FN=fns.one_pass,
        RESCALE_FN=fns.rescale,
        ESTIMATE_FN=fns.estimate,
        TO_S=dstudent is not None,
        TO_T=dteacher is not None,
        HARD=hard,
        SEPARATE_SUM_T1=hard and inv_temperature != 1,
        MAP_S=map_s,
        MAP_T=map_t,
        ACC_DTYPE=launch.tl_dtype(dtype),
    )
    return losses, stats
