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

from lucid import _namesakes as _namesakes  # isort: split

from lucid import autograd, nn, ops, optim
from lucid._flags import check_values, gradient_in_forward
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
    rand,
    randn,
    tensor,
    zeros,
    zeros_like,
)
from lucid.ops import abs, exp, log, matmul, sqrt, tanh, where
from lucid.random import manual_seed
from lucid.tensor import Tensor, eval

set_default_device(ops.memory.kernel_device())

try:
    __version__ = metadata.version("lucid-triton")
except metadata.PackageNotFoundError:  # used from a source tree that was never installed
    __version__ = "0+unknown"
del metadata

__all__ = [
    "Tensor",
    "abs",
    "arange",
    "autograd",
    "bfloat16",
    "bool_",
    "check_values",
    "device",
    "double",
    "dtype",
    "empty",
    "empty_like",
    "enable_grad",
    "eval",
    "exp",
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
    "gradient_in_forward",
    "get_default_device",
    "half",
    "int",
    "int8",
    "int16",
    "int32",
    "int64",
    "is_grad_enabled",
    "log",
    "long",
    "manual_seed",
    "matmul",
    "nn",
    "no_grad",
    "ones",
    "ones_like",
    "ops",
    "optim",
    "rand",
    "randn",
    "set_default_device",
    "set_grad_enabled",
    "short",
    "sqrt",
    "tanh",
    "tensor",
    "where",
    "zeros",
    "zeros_like",
]

#: Submodules that are public once imported.
_SUBMODULES = ("torch", "typing")


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__", *(name for name in _SUBMODULES if name in globals())])
