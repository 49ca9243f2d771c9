"""The faults: each replaces one piece of text, on the formula itself, by a wrong one that still compiles."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True, slots=True)
class Fault:
    """A mistake, and where to make it.

    Attributes
    ----------
    name
        What the code does wrong, in one sentence.
    file
        Path in the repository.
    tests
        Names of the tests that should catch it, cheapest first: "softmax" for tests/test_softmax.py.
    old, new
        A text that occurs once in the file, and its replacement.
    """

    name: str
    file: str
    tests: tuple[str, ...]
    old: str
    new: str

    @property
    def test_files(self) -> list[str]:
        """Return the files of `tests`."""
        return [f"tests/test_{name}.py" for name in self.tests]

    def error(self) -> str | None:
        """Return why it cannot be planted; None where it can."""
        gone = [name for name in (self.file, *self.test_files) if not (ROOT / name).is_file()]
        if gone:
            return f"{self.name}: there is no {', no '.join(gone)}"
        count = (ROOT / self.file).read_text().count(self.old)
        return None if count == 1 else f"{self.name}: the text is {count} times in {self.file}, not once: {self.old!r}"

    def planted(self, source: str) -> str:
        """Return the source with the fault in it."""
        return source.replace(self.old, self.new)


#: By file: name, tests, old text, new text.
# fmt: off
_FAULTS: dict[str, list[tuple[str, str, str, str]]] = {
    "triton_kernels/jit/math.py": [
        ("a chunk of large negative logits makes the row NaN", "divergence_semantics cross_entropy",
         'tl.where((factor == 0) & (sum_exp == float("inf")), 0.0, sum_exp * factor)', "sum_exp * factor"),
        ("kl_div adds NaN where a zero target meets log q of minus infinity", "kl_div_semantics",
         "return p * tl.where(zero & (log_q == log_q), 0.0, slope)", "return p * slope"),
        ("kl_div drops a NaN of log q where the target is zero", "kl_div_semantics",
         "return p * tl.where(zero & (log_q == log_q), 0.0, slope)", "return p * tl.where(zero, 0.0, slope)"),
        ("kl_div's gradient to log p lacks the 1", "kl_div kl_div_semantics",
         "p * (target - log_q + 1) * dloss", "p * (target - log_q) * dloss"),
        ("kl_div's gradient to a zero target is infinite", "kl_div_semantics",
         "return tl.where(zero & (log_q == log_q), 0.0, grad)", "return grad"),
        ("exp errs by the rounding of x·log₂e", "operators",
         "tl.fma(y, error * LN_2, y)", "y"),
        ("expm1 cancels near 0", "operators",
         "tl.where(tl.abs(x) < 1, near, u - 1)", "u - 1"),
        ("softmax is NaN where a part of a row is masked", "softmax",
         "return tl.where(old_max == new_max, 1.0, exp(old_max - new_max))", "return exp(old_max - new_max)"),
    ],
    "triton_kernels/losses/kl_div.py": [
        ("kl_div does not add what the logarithm lacks near 1", "kl_div",
         "acc += p * math.log_correction(p)", "acc += 0 * p * math.log_correction(p)"),
        ("kl_div adds the elements that a last tile does not have", "kl_div properties traffic",
         'float("-inf") if LOG_TARGET else 0.0  #', 'float("-inf") if LOG_TARGET else 0.5  #'),
        ("kl_div applies the factor of a sum in several programs twice", "kl_div",
         "scale=1.0 if two_launches else scale", "scale=scale"),
        ("kl_div's backward takes dloss's strides for those of x", "kl_div",
         "(log_q, coalesced.strides[2])", "(log_q, coalesced.strides[1])"),
        ("kl_div's backward has offsets of 32 bits for any size", "large",
         '**launch.element_args(coalesced, config["BLOCK"])',
         '**{**launch.element_args(coalesced, config["BLOCK"]), "INDEX_DTYPE": launch.index_dtype(0)}'),
        ("an element out of bounds is read", "traffic",
         "x = load(log_q, offs, mask, inner_sizes, 0.0, ACC_DTYPE)",
         "x = load(log_q, offs, offs <= n if MASKED else None, inner_sizes, 0.0, ACC_DTYPE)"),
    ],
    "triton_kernels/runtime/strides.py": [
        ("dimensions merge where one operand alone allows it", "kl_div shapes",
         "if sizes and all(m[-1]", "if sizes and any(m[-1]"),
        ("a result's dimensions are permuted the wrong way round", "softmax",
         "dense.permute(sorted(range(len(order)), key=order.__getitem__))", "dense.permute(order)"),
        ("offsets are narrow where strides reach beyond 32 bits", "large",
         "return max(self.numel + padding, self.extent)", "return self.numel + padding"),
        ("the first tensor's rows say how those of all are aligned", "divergence softmax",
         "for tensor in tensors:", "for tensor in tensors[:1]:"),
        ("a single row has another stride than many", "variants",
         "if all(size == 1 for size in shape):", "if not shape:"),
    ],
    "triton_kernels/jit/partials.py": [
        ("rows of partial results are taken to be as long as a block", "products shapes",
         "partials_ptr + row * columns + start", "partials_ptr + row * BLOCK + start"),
        ("a sum of partial results loses its factor", "products kl_div",
         "tl.sum(acc, axis=0) * tl.full((), scale, ACC_DTYPE)", "tl.sum(acc, axis=0)"),
    ],
    "triton_kernels/ops/reduce.py": [
        ("a sum leaves out the last columns", "products shapes",
         "tl.minimum(first + TILES, tl.cdiv(columns, BLOCK_V))",
         "tl.minimum(first + TILES, tl.cdiv(columns, BLOCK_V) - (columns > BLOCK_V).to(tl.int32))"),
        ("integers are added up in float32", "shapes operators",
         "acc_dtype = launch.compute_dtype(x.dtype) if x.dtype.is_floating_point else torch.int64",
         "acc_dtype = launch.compute_dtype(x.dtype)"),
    ],
    "triton_kernels/losses/reduction.py": [
        ("weights that cancel are taken for tokens that do not count", "divergence_semantics",
         "none_active = (tl.max(active.to(tl.int32), axis=0) == 0)", "none_active = (tl.sum(weights, axis=0) == 0)"),
        ("weights that cancel within a program are taken for tokens that do not count", "divergence",
         "weights, active = sums[1], sums[2]", "weights, active = sums[1], sums[1]"),
        ("a mean over no token has a factor that is no number", "divergence",
         "factor = tl.where(none_active, 0.0, factor)", "factor = factor * 1.0"),
        ("a normalizer of 0 is reported where no token counts", "divergence_semantics",
         "bad = ((denominator > 0) == 0) & (none_active == 0)", "bad = (denominator > 0) == 0"),
    ],
    "triton_kernels/losses/distillation/terms.py": [
        ("forward KL is NaN where both sides are masked", "divergence_semantics",
         "a_terms = e_t * tl.where(e_t > 0, z_t - z_s, 0.0)", "a_terms = e_t * (z_t - z_s)"),
        ("forward KL leaves a chunk's sum as it is where the row's maximum is in another", "divergence",
         "factor * (a + sum_t * (shift_t - shift_s))", "factor * a"),
        ("forward KL of a student without a distribution is a number", "divergence_semantics fusion",
         'k = tl.where(sum_s > 0, a.to(tl.float64) / wide_sum_t, float("nan"))', "k = a.to(tl.float64) / wide_sum_t"),
        ("forward KL's gradient to the teacher is NaN where both sides are masked", "divergence_semantics",
         "tl.where(e_t > 0, z_t - z_s - k_t[:, None], (k_t - k_t)[:, None])", "z_t - z_s - k_t[:, None]"),
        ("JS exchanges the parts of its mixture", "divergence",
         "of_larger = tl.where(r > 0, 1 - beta, beta)", "of_larger = tl.where(r > 0, beta, 1 - beta)"),
        ("JS has a wrong third cumulant where p is near q", "divergence_accuracy",
         "(LN_2 * LN_2 / 6)", "(LN_2 * LN_2 / 2)"),
        ("JS cancels where p is near q", "divergence_accuracy",
         "near = tl.abs(r) < 0.0625", "near = tl.abs(r) < 0.0"),
        ("JS weighs the student's gradient by beta", "divergence",
         "(g * (1 - beta))[:, None]", "(g * beta)[:, None]"),
        ("JS of a row without a distribution is a number", "divergence_semantics",
         "nan = _nan_if_degenerate(sum_s) + _nan_if_degenerate(sum_t)", "nan = _nan_if_degenerate(sum_s)"),
        ("total variation gives equal probabilities a sign", "divergence_accuracy divergence_semantics",
         "tl.where(sign < 0, -x, 0.0)", "-x"),
        ("total variation takes the student's mean sign for the teacher's", "divergence",
         "return 0.5 * total, of_student, of_student - total", "return 0.5 * total, of_student, of_student"),
    ],
    "triton_kernels/losses/distillation/forward.py": [
        ("a divergence of float32 from float64 is calculated in float32", "divergence",
         "dtype = launch.compute_dtype(student.dtype, teacher.dtype)", "dtype = launch.compute_dtype(student.dtype)"),
        ("hard labels are mixed in at the temperature of the divergence", "divergence",
         '"SEPARATE_SUM_T1": hard and inv_temperature != 1', '"SEPARATE_SUM_T1": False'),
        ("hard labels merge chunks at the temperature of the divergence", "divergence",
         "math.rescaled(chunk_sum_s_T1, shift_s * temperature)", "math.rescaled(chunk_sum_s_T1, shift_s)"),
        ("the second sum of a second pass is the first one again", "divergence",
         "aux_sums += load_stat(partials_ptr, AUX_SUM, size", "aux_sums += load_stat(partials_ptr, LOSS_SUM, size"),
        ("a row that does not count has a loss of NaN", "divergence_semantics",
         "tl.where(active, w * loss, 0.0)", "w * loss"),
    ],
    "triton_kernels/jit/tiles.py": [
        ("a divergence skips the last chunk of a row", "divergence",
         "(offs_c < chunks)[None, :]", "(offs_c < chunks - 1)[None, :]"),
        ("labels pick the logit of another column", "divergence",
         "column_offsets(column, operand[2])", "column"),
        ("gradients of rows that do not count are not 0", "divergence_semantics",
         "tl.where(mask, value, 0.0)", "value"),
        ("a divergence ignores ignore_index", "divergence_semantics",
         "weight = tl.where(label == ignore_index, 0.0, weight)", "weight = tl.where(label == -100, 0.0, weight)"),
        ("a label one beyond the last column is not reported", "divergence_bad_input",
         "bad = (weight != 0) & ((label < 0) | (label >= V))", "bad = (weight != 0) & ((label < 0) | (label > V))"),
        ("labels of tokens of weight 0 are reported", "divergence_bad_input",
         "bad = (weight != 0) & ((label < 0) | (label >= V))",
         "bad = (label != ignore_index) & ((label < 0) | (label >= V))"),
        ("a wrong label counts as any other", "divergence_bad_input",
         'weight = tl.where(bad, float("nan"), weight)', "weight = weight * 1.0"),
        ("rows of logits have offsets of 32 bits", "large",
         "offs_n = (pid // chunks).to(tl.int64) * BLOCK_N", "offs_n = pid // chunks * BLOCK_N"),
        ("label smoothing leaves a chunk's sum as it is where the row's maximum is in another", "cross_entropy",
         "tl.where(weight != 0, weight * shift, 0.0)", "0.0"),
    ],
    "triton_kernels/losses/distillation/backward.py": [
        ("gradients of a divergence lack the tokens' weights", "divergence",
         "g = w * load_row(", "g = load_row("),
        ("gradients of a divergence lack 1/T", "divergence",
         "(1 - hard_label_weight) * scale * inv_temperature", "(1 - hard_label_weight) * scale"),
        ("columns far beyond the vocabulary get no gradient", "divergence_semantics",
         "columns = max([V] + [gradient.shape[-1] for gradient in (ds, dt) if gradient is not None])", "columns = V"),
        ("hard labels' gradient has sum_exp of the divergence's temperature", "divergence",
         "(g_ce / sum_s_T1)[:, None]", "(g_ce / sum_s)[:, None]"),
    ],
    "triton_kernels/runtime/row_tiling.py": [
        ("all operands get the first one's column stride", "divergence",
         "stride = tensor.stride(dim)", "stride = first.stride(dim)"),
        ("the number of rows shapes the compiled code", "variants batch_invariance",
         'for name in ("rows", "chunks", "tiles", "ignore_index")', 'for name in ("chunks", "tiles", "ignore_index")'),
        ("all operands get the first one's row strides", "soft_cross_entropy",
         "[[t.stride(d) for d in row_dims] for t in given.values()]",
         "[[first.stride(d) for d in row_dims] for t in given.values()]"),
    ],
    "triton_kernels/runtime/tile_configs.py": [
        ("a GPU's tile of a single row is smaller than that of many", "batch_invariance divergence_semantics",
         "8192 if whole_rows and columns <= 8192 else 4096",
         "8192 if whole_rows and columns <= 8192 and rows > 1 else 4096"),
    ],
    "triton_kernels/runtime/device_errors.py": [
        ("a pending error is raised again and again", "divergence_bad_input products",
         "    pending.fill_(-1)\n", ""),
    ],
    "triton_kernels/losses/cross_entropy.py": [
        ("cross-entropy's gradient ignores ignore_index", "cross_entropy",
         "active = mask_n & (label != ignore_index)\n    g = ", "active = mask_n\n    g = "),
        ("label smoothing's gradient takes the number of classes for the sum of their weights", "cross_entropy",
         "grad_uniform * weight_sum, sum_exp", "grad_uniform * V, sum_exp"),
        ("a class of weight 0 adds NaN where it is masked", "cross_entropy torch_logits",
         "tl.sum(c * tl.where(c != 0, z, 0.0), axis=1)", "tl.sum(c * z, axis=1)"),
    ],
    "triton_kernels/losses/soft_cross_entropy.py": [
        ("cross-entropy with probabilities forgets the classes' weights where nothing is smoothed",
         "soft_cross_entropy",
         "if SMOOTH or class_ptr is not None:", "if SMOOTH:"),
        ("a masked class of probability 0 adds NaN", "soft_cross_entropy",
         "tl.where(wz == wz, wz, 0.0)", "wz"),
        ("the gradient to the probability of a masked class of weight 0 is NaN", "soft_cross_entropy",
         'tl.where((scale == 0) & (nll == float("inf")), 0.0, nll)', "nll"),
    ],
    "triton_kernels/ops/softmax.py": [
        ("softmax leaves a long row's last chunk out of its statistics", "softmax",
         "for i in range(0, chunks):\n            chunk_max, chunk_sum = _chunk_stats",
         "for i in range(0, chunks - 1):\n            chunk_max, chunk_sum = _chunk_stats"),
        ("softmax's backward takes the output's stride for that of its gradient", "softmax",
         "row_dy = load_tile(dy, offs_n", "row_dy = load_tile((dy[0], dy[1], y[2], dy[3]), offs_n"),
        ("softmax's backward adds up what a row's columns beyond the end hold", "softmax",
         "row_y = load_tile(y, offs_n, offs_v, sizes, mask, 0, ACC_DTYPE)",
         'row_y = load_tile(y, offs_n, offs_v, sizes, mask, float("nan"), ACC_DTYPE)'),
    ],
    "triton_kernels/ops/elementwise.py": [
        ("even powers of negative numbers are negative", "operators",
         "(base < 0) & (half != tl.floor(half))", "(base < 0)"),
        ("relu of NaN is 0", "operators",
         "tl.where(a <= 0, 0, a)", "tl.where(a > 0, a, 0)"),
    ],
    "triton_kernels/ops/matmul.py": [
        ("a strided bias is read as a dense one", "products",
         "bias[0] + offs_n * bias[1][0]", "bias[0] + offs_n"),
        ("a matrix product of float16 is added up in float16", "products",
         "acc = tl.dot(tile_a, tile_b, acc,", "acc = tl.dot(tile_a, tile_b, acc.to(tile_a.dtype).to(ACC_DTYPE),"),
    ],
    "triton_kernels/ops/embedding.py": [
        ("a negative index of an embedding is not reported", "products",
         "rows, mask_n & ~valid)", "rows, mask_n & (row >= rows))"),
        ("the gradient of an embedding loses the last row of a tile", "products",
         "(row <= tl.max(offs_r, axis=0))", "(row < tl.max(offs_r, axis=0))"),
    ],
    "triton_kernels/ops/optimizer.py": [
        ("Nesterov's step leaves out the gradient", "optim",
         "step += momentum * buf", "step = momentum * buf"),
        ("Adam adds eps within the root", "optim",
         "(tl.sqrt(v / bias_correction2) + eps)", "tl.sqrt(v / bias_correction2 + eps)"),
        ("Adam takes the parameter's strides for those of the gradient", "optim",
         "grad=operands[1],\n        exp_avg", "grad=(grad, coalesced.strides[0]),\n        exp_avg"),
    ],
    "triton_kernels/runtime/replay.py": [
        ("a recorded call is repeated for tensors of other strides", "replay",
         "key += (arg.shape, arg.stride(), arg.dtype", "key += (arg.shape, arg.dtype"),
        ("a recorded call is repeated for another sign of zero", "replay",
         "key.append(arg.hex())", "key.append(arg)"),
    ],
    "lucid/autograd/engine.py": [
        ("backward runs first what was recorded first", "autograd",
         "heapq.heappush(self.ready, (-sequence,", "heapq.heappush(self.ready, (sequence,"),
        ("two gradients share memory", "autograd_memory",
         "if memory in self.owned or overlaps:", "if overlaps:"),
        ("a gradient's elements share memory", "autograd_memory",
         "if memory in self.owned or overlaps:", "if memory in self.owned:"),
        ("create_graph frees the graph", "autograd_grad",
         "GraphTask(roots, retain_graph or create_graph, create_graph)",
         "GraphTask(roots, retain_graph, create_graph)"),
        ("a second backward through a freed graph that saved nothing goes unnoticed", "autograd_memory",
         "_check_not_freed(self.nodes)", "_check_not_freed([])"),
        ("hooks of results do not run", "autograd_functions",
         "self._complete(node, number, node.hooks.get(number), grads[number])",
         "self._complete(node, number, None, grads[number])"),
        ("a leaf that was frozen since gets a gradient", "autograd",
         "elif grads and target.requires_grad:", "elif grads:"),
        ("autograd.grad runs what leads to no input", "autograd_grad",
         "(self.needed is None or id(node) in self.needed)", "True"),
    ],
    "lucid/autograd/function.py": [
        ("a saved tensor that was changed in place is used", "autograd_memory",
         "if version != self.version:", "if False:"),
        ("second derivatives take a saved result for a constant", "autograd_grad",
         "self.tensor = tensor if output_nr is None else None", "self.tensor = tensor"),
        ("a gradient keeps another dtype than its argument's", "autograd_functions",
         "return grad if grad._like.dtype == edge.dtype else grad.to(edge.dtype)", "return grad"),
    ],
    "lucid/autograd/grad_mode.py": [
        ("set_grad_enabled leaves a block with gradients on", "grad_mode",
         "_flag.enabled = self._before", "_flag.enabled = True"),
    ],
    "lucid/_flags.py": [
        ("a flag holds for all threads", "grad_mode",
         "class ThreadLocalFlag(threading.local):", "class ThreadLocalFlag:"),
        ("calls of a decorated function share what was before them", "grad_mode",
         "scope = copy(self)  #", "scope = self  #"),
    ],
    "lucid/_lazy.py": [
        ("what is deferred is not calculated before its memory is written to", "fusion_memory",
         "dependents = tuple(_allocation(buffer).dependents)", "dependents: tuple[Deferred, ...] = ()"),
        ("memory that others can write to is deferred from", "fusion_memory",
         "_allocation(buffer).shared = True", "_allocation(buffer).shared = False"),
        ("a small part keeps the whole of its memory alive", "fusion_memory",
         "return 2 * buffer.numel() * buffer.itemsize >= buffer.untyped_storage().nbytes()", "return True"),
        ("what is deferred is calculated from memory that changed", "fusion_memory",
         "if any(version_of(source) != version for source, version in sources):", "if False:"),
    ],
    "lucid/ops/kl_div_fused.py": [
        ("a fused loss takes the student's temperature for the teacher's", "fusion_temperature",
         "same = log_q.factor == target.factor", "same = True"),
        ("a fused gradient to scaled logits is scaled", "fusion_temperature",
         "self._pass(self.scale / self.factor,", "self._pass(self.scale,"),
        ("a fused gradient waits while others can write to the loss's", "fusion_memory",
         "any(map(is_shared, read))", "False"),
    ],
    "lucid/ops/softmax.py": [
        ("a fused gradient is taken for that of another softmax", "fusion_graph fusion",
         " and gradient.softmax is y._memory:", ":"),
        ("softmax's second derivative by its result lacks a term", "softmax",
         "mul(dy, gy))\n", "mul(dy, mul(gy, 0)))\n"),
    ],
    "lucid/ops/scaled.py": [
        ("a fused gradient is taken for that of another quotient", "fusion_temperature",
         "if made is not None and gradient.scaled is made() else None", "if made is not None else None"),
    ],
    "lucid/ops/kl_div.py": [
        ("a broadcast gradient is rounded before it is added up", "kl_div",
         "operand.dtype.torch if operand.shape == shape else compute", "operand.dtype.torch"),
        ("kl_div's second derivative by log p is off by 1", "kl_div_semantics",
         "mul(weighted, add(slope, 2)) if", "mul(weighted, add(slope, 1)) if"),
        ("kl_div's second derivatives are NaN where the target is zero", "kl_div_semantics",
         "y, p = (where(present, t, 1) for t in (y, p))", "y, p = (where(present, t, t) for t in (y, p))"),
    ],
    "lucid/ops/reduction.py": [
        ("a mean over nothing is 0", "shapes",
         "1 / count if count else math.inf", "1 / count if count else 0.0"),
    ],
    "lucid/ops/memory.py": [
        ("a permutation's gradient is permuted again", "operator_gradients shapes autograd",
         "inverse = tuple(sorted(range(len(ctx.dims)), key=ctx.dims.__getitem__))", "inverse = ctx.dims"),
        ("a wrong label is no error of the call on the CPU", "divergence_bad_input",
         'if buffer.device.type == "cpu" or is_checking():', "if is_checking():"),
    ],
    "lucid/ops/arithmetic.py": [
        ("a number is compared in more digits than the elements have", "operators",
         "_rounded(v, promoted) for v in buffers", "float(v) for v in buffers"),
    ],
    "lucid/ops/power.py": [
        ("the gradient of a power of 0 is NaN", "operator_gradients",
         "return exponent - 1 if exponent else 0", "return exponent - 1"),
    ],
    "lucid/ops/divergence.py": [
        ("a wrong label is no error of the call where values are checked", "divergence_bad_input",
         "raise_device_errors(student._buffer)", "student._buffer"),
        ("the mean of cross-entropies does not divide by the classes' weights", "cross_entropy",
         "_reduced(losses, statistics[0], reduction, x._buffer.dtype)",
         "_reduced(losses, statistics[0].bool().to(losses.dtype), reduction, x._buffer.dtype)"),
    ],
    "lucid/nn/functional.py": [
        ("batchmean divides by the rows that broadcasting made", "kl_div_semantics",
         "count = x.shape[0]", "count = shape[0]"),
    ],
    "lucid/_loss_args.py": [
        ("temperature_squared multiplies by the temperature once", "divergence",
         "scale=temperature * temperature if", "scale=temperature if"),
        ("a number as the normalizer divides twice", "divergence",
         "return 1 / (self.count * self.normalizer)", "return 1 / (self.count * self.normalizer * self.normalizer)"),
        ("hard labels may be missing", "divergence_bad_input",
         "if alpha and labels is None:", "if False:"),
        ("a vocabulary larger than one side's logits is accepted", "divergence_bad_input",
         "if columns > min(widths):", "if columns > max(widths):"),
    ],
    "lucid/_arguments.py": [
        ("an infinite temperature is accepted", "loss_modules divergence_bad_input",
         "if not (abs(result) < math.inf and predicate(value)):", "if not predicate(value):"),
    ],
    "lucid/tensor.py": [
        ("a tensor of a tensor shares its memory", "tensor",
         "data._like.dtype, copy=True)", "data._like.dtype)"),
        ("memory that NumPy got is still deferred from", "fusion_memory",
         "return mark_shared(self._numpy_compatible()).numpy()", "return self._numpy_compatible().numpy()"),
        ("logits that a gradient was written over are read", "divergence_semantics",
         "return check_valid(realize(self._memory))", "return realize(self._memory)"),
    ],
    "lucid/_clobbered.py": [
        ("a gradient written in place is no change of version", "divergence_semantics fusion_memory",
         "torch.autograd.graph.increment_version(buffer)", "pass"),
        ("views of logits that a gradient was written over are read", "divergence_semantics",
         "setattr(_base(buffer), _ATTRIBUTE, True)", "setattr(buffer, _ATTRIBUTE, True)"),
        ("a gradient is written over logits whose rows overlap", "divergence_semantics",
         "if size > 1 and stride <= reach:", "if size > 1 and stride < reach:"),
        ("a gradient is written over logits that share memory with another part of the teacher's",
         "divergence_semantics torch_autograd",
         "student.untyped_storage().data_ptr() == teacher.untyped_storage().data_ptr()",
         "student.data_ptr() == teacher.data_ptr()"),
    ],
    "lucid/nn/backward_hooks.py": [
        ("backward hooks run again in a second pass of a double backward", "module_backward_hooks module_hooks",
         "grad_output, self._grad_output = self._grad_output, None", "grad_output = self._grad_output"),
    ],
    "lucid/nn/_hook_mixin.py": [
        ("a hook that removes itself disturbs the others", "module_hooks",
         "for hook in tuple(self._forward_hooks.values()):", "for hook in self._forward_hooks.values():"),
    ],
    "lucid/nn/module.py": [
        ("a module's gradients stay behind where it moves", "module",
         "for tensor in (member, member.grad):", "for tensor in (member,):"),
    ],
    "lucid/nn/state.py": [
        ("a state is loaded over what is yet to be calculated from a parameter", "fusion_memory module_state",
         "target._buffer_for_write().copy_(value._buffer)", "target._buffer.copy_(value._buffer)"),
    ],
    "lucid/nn/modules/linear.py": [
        ("Linear starts within a bound of its outputs", "module_layers",
         "bound = 1 / math.sqrt(self.in_features)", "bound = 1 / math.sqrt(self.out_features)"),
    ],
    "lucid/nn/modules/loss.py": [
        ("a module of cross-entropy leaves out its classes' weights", "cross_entropy",
         "            self.weight,\n", "            None,\n"),
    ],
    "lucid/optim/optimizer.py": [
        ("an optimizer's step is no change of version", "optim autograd_memory",
         "torch.autograd.graph.increment_version(param._buffer)", "pass"),
        ("an optimizer's state is as short as its parameter", "optim",
         "torch.zeros_like(param._buffer, dtype=kind)", "torch.zeros_like(param._buffer)"),
    ],
    "lucid/optim/sgd.py": [
        ("the first step of momentum is dampened", "optim",
         "            dampening = 0.0\n", ""),
    ],
    "lucid/torch/cpu/divergence.py": [
        ("on the CPU gradients of a divergence lack 1/T", "torch_logits divergence",
         "((1 - alpha) * options.scale * options.inv_temperature)", "((1 - alpha) * options.scale)"),
        ("on the CPU JS exchanges the parts of its mixture", "divergence",
         ".mul_(0.5 - beta)", ".mul_(beta - 0.5)"),
        ("on the CPU forward KL is NaN where both sides are masked", "divergence_semantics",
         "row_sum(_defined(products), first).add_(chunk.undefined)", "row_sum(products, first).add_(chunk.undefined)"),
        ("on the CPU forward KL of nearly equal rows is negative", "torch_cpu",
         "torch.log(d_t / d_s)).clamp_(min=0)", "torch.log(d_t / d_s))"),
        ("on the CPU total variation's gradient to a row is a number where the other row is NaN",
         "divergence_semantics",
         "/ d + chunk.undefined", "/ d"),
        ("on the CPU hard labels have the temperature of the divergence", "divergence",
         "sub_max(s, m_s, LOG2_E, rows.scratch(4, s))", "sub_max(s, m_s, factor, rows.scratch(4, s))"),
    ],
    "lucid/torch/cpu/rows.py": [
        ("on the CPU columns beyond the vocabulary get no gradient", "divergence",
         "part[..., self.columns :] = 0", "pass"),
        ("on the CPU the sum of a single row depends on the number of threads", "torch_cpu",
         "if len(x) == 1:", "if False:"),
        ("on the CPU losses of tokens are a view that cannot be changed in place", "torch_autograd",
         "return numbers.reshape(self.lead).clone()", "return numbers.reshape(self.lead)"),
        ("on the CPU buffers of inference mode are used outside of it", "torch_cpu",
         "with torch.inference_mode(False):", "with torch.no_grad():"),
        ("on the CPU kept rows of a chunk are counted from the chunk before", "torch_cpu divergence",
         "first, before = first + size, before + count", "first, before = first + size, before + size"),
    ],
    "lucid/torch/cpu/token_mean.py": [
        ("on the CPU weights that cancel are taken for tokens that do not count", "divergence_semantics torch_logits",
         "not weights.any()", "not weights.sum()"),
        ("on the CPU a normalizer that is not positive is used", "divergence_bad_input torch_logits",
         "if not denominator > 0:", "if denominator < 0:"),
    ],
    "lucid/torch/cpu/kl_div.py": [
        ("on the CPU kl_div takes a negative probability for a small one", "kl_div_semantics",
         "if loss.sum().isnan() or (least is not None and not least >= 0):", "if loss.sum().isnan():"),
        ("on the CPU kl_div loses the gradient to a zero target", "kl_div_semantics torch_kl_div",
         "return torch.where((p == 0) & (log_q == log_q), 0.0, slope.mul_(g))", "return slope.mul_(g)"),
    ],
    "lucid/torch/cpu/cross_entropy.py": [
        ("on the CPU label smoothing takes the number of classes for the sum of their weights", "cross_entropy",
         "of_all = V if c is None else c.sum()", "of_all = V"),
        ("on the CPU the mean of cross-entropies counts classes and not their weights", "cross_entropy torch_logits",
         "return torch.where(valid, class_weight.to(compute)[torch.where(valid, flat, 0).long()], 0)",
         "return valid.to(compute)"),
    ],
    "lucid/torch/cpu/soft_cross_entropy.py": [
        ("on the CPU the gradient to the probability of a masked class of weight 0 is NaN", "soft_cross_entropy",
         "nll.masked_fill_((to_y == 0) & (nll == math.inf), 0).mul_(to_y)", "nll.mul_(to_y)"),
    ],
    "lucid/torch/cpu/step.py": [
        ("a bfloat16 gradient is rounded twice", "torch_cpu",
         "math.frexp(abs(value))[0] == 0.5", "math.isfinite(value)"),
        ("a float16 gradient loses what a scale from above would keep", "torch_cpu",
         "and logits.dtype != torch.float16", "and logits.dtype is not None"),
        ("a second pass through a retained graph multiplies the first one's gradient again", "torch_cpu torch_autograd",
         "gradient, ctx.gradient = ctx.gradient, None", "gradient = ctx.gradient"),
        ("a gradient made at once is kept past checkpoints", "torch_cpu",
         "torch._C._autograd._top_saved_tensors_default_hooks(True) is None", "logits.requires_grad"),
        ("ignored tokens get a gradient of NaN where what comes from above is infinite", "torch_cpu",
         "and bool(dloss.isfinite().all())", ""),
    ],
    "lucid/torch/row_ops.py": [
        ("in a graph ignored tokens get a gradient of NaN where what comes from above is infinite",
         "torch_compiled_gradients",
         "g = torch.where(mask, dloss.to(gradient.dtype), 1.0)", "g = dloss.to(gradient.dtype).expand(mask.shape)"),
        ("the compiler takes gradients for contiguous", "torch_registration",
         "return tk.strides.fake_output(logits.shape, (logits,), logits.dtype)",
         "return torch.empty(logits.shape, dtype=logits.dtype, device=logits.device)"),
    ],
    "lucid/torch/distillation_ops.py": [
        ("a gradient that kernels write in place is no change of version for PyTorch", "torch_autograd",
         "torch.autograd.graph.increment_version(student)", "pass"),
        ("a gradient in place may be differentiated", "torch_autograd",
         "and not torch.is_grad_enabled():", "and True:"),
    ],
    "lucid/torch/kl_div_ops.py": [
        ("PyTorch's kl_div has a second derivative by log p that is off by 1", "torch_autograd",
         "(weighted * (slope + 2) if", "(weighted * (slope + 1) if"),
        ("PyTorch's kl_div keeps log-probabilities that backward does not need", "torch_autograd",
         "save(ctx, x if ctx.needs_grad[1] else None, target)", "save(ctx, x, target)"),
    ],
    "lucid/torch/operators.py": [
        ("backward runs another implementation than forward did", "torch_cpu",
         "if ctx.kernels_on_cpu == _kernels_on_cpu.enabled:", "if True:"),
        ("vmap takes the first dimension for the batch's", "torch_registration",
         "arg.select(dim, i)", "arg.select(0, i)"),
        ("tensors made in inference mode are not saved", "torch_cpu",
         "t if t is not None and t.is_inference() else None", "None"),
    ],
    "lucid/torch/functional.py": [
        ("under autocast a loss is as short as its inputs", "torch_training torch_logits",
         "return torch.float32 if enabled else dtype", "return dtype"),
        ("a 0-d tensor promotes the dtype of others", "torch_kl_div",
         "return input.dtype if input.dim() else target.dtype",
         "return torch.promote_types(input.dtype, target.dtype)"),
        ("size_average=False means the mean", "torch_kl_div",
         '"mean" if size_average is None or size_average else "sum"', '"mean"'),
        ("batchmean counts the rows that broadcasting made", "torch_kl_div",
         'rows = input.shape[0] if reduction == "batchmean" and input.dim() else 1',
         'rows = max(input.shape, target.shape)[0] if reduction == "batchmean" and input.dim() else 1'),
    ],
    "lucid/torch/modules.py": [
        ("a module of PyTorch takes log-probabilities for probabilities", "torch_kl_div",
         "reduction=self.reduction, log_target=self.log_target)", "reduction=self.reduction)"),
        ("a module of PyTorch ignores ignore_index", "torch_logits",
         "ignore_index=self.ignore_index,", "ignore_index=-100,"),
    ],
}
# fmt: on

FAULTS = [
    Fault(name, file, tuple(tests.split()), old, new)
    for file, faults in _FAULTS.items()
    for name, tests, old, new in faults
]
