"""The Lucid tensor and module API on fused Triton kernels.

On a machine without a GPU everything runs on the CPU, in Triton's interpreter, whenever triton was imported.

Examples
--------
>>> import lucid
>>> import lucid.nn as nn
>>> import lucid.nn.functional as F
>>> student = lucid.tensor([[0.5, 1.0, 0.2]], requires_grad=True)
>>> teacher = lucid.tensor([[0.3, 0.9, 0.4]])
>>> loss = nn.KLDivLoss(reduction="batchmean")(F.log_softmax(student, dim=-1), F.softmax(teacher, dim=-1))
>>> loss.backward()
>>> f"{loss.item():.6f}"
'0.011704'
"""

from importlib import metadata
from typing import TYPE_CHECKING

from lucid import _namesakes as _namesakes  # isort: split

from lucid import amp, autograd, nn, ops, optim, random
from lucid._docs import left_out
from lucid._flags import (
    check_values,
    get_float32_matmul_precision,
    gradient_in_forward,
    set_float32_matmul_precision,
)
from lucid._lazy import fusion
from lucid.autograd import enable_grad, is_grad_enabled, no_grad, set_grad_enabled
from lucid.device import device, get_default_device, set_default_device
from lucid.dtype import (
    bfloat16,
    bool_,
    double,
    dtype,
    float,
    float16,
    float32,
    float64,
    half,
    int,
    int8,
    int16,
    int32,
    int64,
    long,
    short,
    uint8,
)
from lucid.factories import (
    arange,
    empty,
    empty_like,
    from_dlpack,
    from_numpy,
    from_torch,
    full,
    full_like,
    ones,
    ones_like,
    tensor,
    zeros,
    zeros_like,
)
from lucid.ops import (
    all,
    amax,
    amin,
    any,
    argmax,
    argmin,
    bmm,
    logsumexp,
    matmul,
    max,
    mean,
    min,
    norm,
    pow,
    prod,
    std,
    sum,
    var,
)
from lucid.ops.arithmetic import *  # noqa: F403
from lucid.ops.indexing import flip, gather
from lucid.ops.joining import *  # noqa: F403
from lucid.ops.memory import flatten, permute, reshape, squeeze, transpose, unsqueeze
from lucid.random import (
    bernoulli,
    get_rng_state,
    initial_seed,
    manual_seed,
    rand,
    rand_like,
    randint,
    randn,
    randn_like,
    randperm,
    seed,
    set_rng_state,
)
from lucid.serialization import load, save
from lucid.tensor import Tensor, eval

set_default_device(ops.memory.kernel_device())

try:
    __version__ = metadata.version("lucid-triton")
except metadata.PackageNotFoundError:  # used from a source tree that was never installed
    __version__ = "0+unknown"
del metadata

__all__ = [
    *ops.arithmetic.__all__,
    *ops.joining.__all__,
    "Tensor",
    "all",
    "amax",
    "amin",
    "amp",
    "any",
    "arange",
    "argmax",
    "argmin",
    "autograd",
    "bernoulli",
    "bfloat16",
    "bmm",
    "bool_",
    "check_values",
    "device",
    "double",
    "dtype",
    "empty",
    "empty_like",
    "enable_grad",
    "eval",
    "flatten",
    "flip",
    "float",
    "float16",
    "float32",
    "float64",
    "from_dlpack",
    "from_numpy",
    "from_torch",
    "full",
    "full_like",
    "fusion",
    "gather",
    "get_default_device",
    "get_float32_matmul_precision",
    "get_rng_state",
    "gradient_in_forward",
    "half",
    "initial_seed",
    "int",
    "int16",
    "int32",
    "int64",
    "int8",
    "is_grad_enabled",
    "load",
    "logsumexp",
    "long",
    "manual_seed",
    "matmul",
    "max",
    "mean",
    "min",
    "nn",
    "no_grad",
    "norm",
    "ones",
    "ones_like",
    "ops",
    "optim",
    "permute",
    "pow",
    "prod",
    "rand",
    "rand_like",
    "randint",
    "randn",
    "randn_like",
    "random",
    "randperm",
    "reshape",
    "save",
    "seed",
    "set_default_device",
    "set_float32_matmul_precision",
    "set_grad_enabled",
    "set_rng_state",
    "short",
    "squeeze",
    "std",
    "sum",
    "tensor",
    "transpose",
    "uint8",
    "unsqueeze",
    "var",
    "zeros",
    "zeros_like",
]

#: Submodules that are public once imported.
_SUBMODULES = ("torch", "typing")


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__", *(name for name in _SUBMODULES if name in globals())])


if not TYPE_CHECKING:
    __getattr__ = left_out(__name__)
