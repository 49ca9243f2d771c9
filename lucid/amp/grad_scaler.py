"""Dynamic scale of a loss, whose gradients would underflow in float16."""

from __future__ import annotations

import enum
from collections.abc import Iterable, Mapping
from typing import Any

import torch

from lucid._arguments import check_bool, check_int, check_real, type_name
from lucid.ops import gradients
from lucid.tensor import Tensor


class _Stage(enum.Enum):
    """What was done with an optimizer's gradients since the last `update`."""

    UNSCALED = enum.auto()
    STEPPED = enum.auto()


class GradScaler:
    """Scale losses, so that float16 gradients do not underflow, by as much as does not make them overflow.

    `step` divides the gradients by the scale, and skips the optimizer's step where one is infinite or NaN. `update`
    then multiplies the scale by `backoff_factor`; after `growth_interval` steps in a row that were not skipped, by
    `growth_factor` (P. Micikevicius et al., "Mixed precision training", 2018, section 3.2). The scale, the check and
    the skipped step are on the device: no method but `get_scale` and `state_dict` waits for it, except for `step` of an
    optimizer that is not of `lucid.optim`.

    Parameters
    ----------
    init_scale : float
        The first scale, above 0. Default: 65536.
    growth_factor : float
        Above 1. Default: 2.
    backoff_factor : float
        Above 0 and below 1. Default: 0.5.
    growth_interval : int
        At least 1. Default: 2000.
    enabled : bool
        With False `scale` returns its argument, `step` is the optimizer's, and other methods do nothing. Default: True.

    Raises
    ------
    TypeError, ValueError
        If an argument is not what it must be.

    Examples
    --------
    >>> import lucid
    >>> x = lucid.tensor([1.0], requires_grad=True)
    >>> optimizer, scaler = lucid.optim.SGD([x], lr=0.1), lucid.amp.GradScaler()
    >>> for factor in (3.0, float("inf")):
    ...     optimizer.zero_grad()
    ...     scaler.scale((x * factor).sum()).backward()
    ...     scaler.step(optimizer)
    ...     scaler.update()
    >>> x
    tensor([0.7], requires_grad=True)
    >>> scaler.get_scale()
    32768.0
    """

    def __init__(
        self,
        init_scale: float = 2.0**16,
        growth_factor: float = 2.0,
        backoff_factor: float = 0.5,
        growth_interval: int = 2000,
        enabled: bool = True,
    ) -> None:
        self._enabled = check_bool("enabled", enabled)
        self._set("init_scale", init_scale, growth_factor, backoff_factor, growth_interval, 0)
        self._found_inf: dict[Any, Tensor] = {}  # by optimizer
        self._stages: dict[Any, _Stage] = {}

    def _set(self, name: str, scale: Any, growth: Any, backoff: Any, interval: Any, growth_tracker: Any) -> None:
        """Set the scale, an argument of that name, and options; on the host, until `scale` shows the device."""
        start = (
            check_real(name, scale, "a number above 0", lambda x: x > 0),
            check_int("_growth_tracker", growth_tracker),
        )
        options: dict[str, Any] = {
            "growth_factor": check_real("growth_factor", growth, "a number above 1", lambda x: x > 1),
            "backoff_factor": check_real(
                "backoff_factor", backoff, "a number above 0 and below 1", lambda x: 0 < x < 1
            ),
            "growth_interval": check_int("growth_interval", interval),
        }
        if options["growth_interval"] < 1:
            raise ValueError(f"growth_interval must be at least 1, got {interval}")
        self._start, self._options = start, options
        self._on_device: tuple[Tensor, Tensor] | None = None  # scale, growth tracker

    def _make(self, device: torch.device) -> Tensor:
        """Return the scale, made on `device` if it is on none."""
        if self._on_device is None:
            scale, tracker = self._start
            self._on_device = (
                Tensor._wrap(torch.full((), scale, dtype=torch.float32, device=device)),
                Tensor._wrap(torch.full((), tracker, dtype=torch.int32, device=device)),
            )
        return self._on_device[0]

    def scale(self, outputs: Any) -> Any:
        """Multiply a Tensor, or each of an iterable of them, by the scale.

        Parameters
        ----------
        outputs : Tensor or iterable of Tensor
            Such as a loss.

        Returns
        -------
        Tensor or list or tuple
            The products; a tuple for a tuple, a list for other iterables.

        Raises
        ------
        TypeError
            If one is no Tensor.
        """
        if not self._enabled:
            return outputs
        if isinstance(outputs, Tensor):
            return outputs * self._make(outputs._like.device).to(outputs.device)
        if isinstance(outputs, Iterable):
            scaled = [self.scale(output) for output in outputs]
            return tuple(scaled) if isinstance(outputs, tuple) else scaled
        raise TypeError(f"outputs must be a lucid.Tensor or an iterable of them, got {type_name(outputs)}")

    def unscale_(self, optimizer: Any) -> None:
        """Divide the gradients of an optimizer's parameters by the scale, in place: one launch for all of a dtype.

        `step` does it, unless it was done before, as for clipping. A NaN or an infinite gradient is noted for `step`
        and `update`.

        Parameters
        ----------
        optimizer : lucid.optim.Optimizer

        Raises
        ------
        RuntimeError
            If it was done since the last `update`, or the optimizer stepped since; if `scale` was never called; without
            a gradient; for gradients on several devices.
        ValueError
            For a float16 gradient, which the division would round to 0: parameters stay in float32, and `autocast`
            casts them.
        """
        if not self._enabled:
            return
        stage = self._stages.get(optimizer)
        if stage is not None:
            done = "unscale_() was called" if stage is _Stage.UNSCALED else "step() was called"
            raise RuntimeError(f"unscale_() must be called once and before step(), but {done} since the last update()")
        scale, _ = self._made("unscale_()")
        params = [param for group in optimizer.param_groups for param in group["params"]]
        grads = [param.grad for param in params if param.grad is not None]
        if not grads:
            raise RuntimeError("unscale_() must find a gradient, but no parameter of the optimizer has one")
        if any(grad._like.dtype is torch.float16 for grad in grads):
            raise ValueError(
                "gradients must not be float16, which would round small ones to 0: with parameters in float32 "
                "lucid.amp.autocast computes in float16"
            )
        devices = {str(grad.device): None for grad in grads}
        if len(devices) > 1:
            raise RuntimeError(f"gradients of an optimizer must be on one device, got {' and '.join(devices)}")
        self._found_inf[optimizer] = gradients.unscale(grads, scale)
        self._stages[optimizer] = _Stage.UNSCALED

    def step(self, optimizer: Any, *args: Any, **kwargs: Any) -> Any:
        """Call ``optimizer.step(*args, **kwargs)``, after `unscale_`; nothing changes where a gradient is not finite.

        Optimizers of `lucid.optim` skip the step on the device, with their number of steps. For another one the host
        waits for the check, and does not call it.

        Parameters
        ----------
        optimizer : lucid.optim.Optimizer
        *args, **kwargs
            Of its step; no closure.

        Returns
        -------
        object
            What the optimizer returns; None if it is not called.

        Raises
        ------
        RuntimeError
            With a closure; if the optimizer stepped since the last `update`; as `unscale_` does.
        """
        if not self._enabled:
            return optimizer.step(*args, **kwargs)
        if args or "closure" in kwargs:
            raise RuntimeError("step() takes no closure, as its loss would not be scaled")
        if self._stages.get(optimizer) is _Stage.STEPPED:
            raise RuntimeError("step() must be called once for an optimizer, but was called since the last update()")
        if optimizer not in self._stages:
            self.unscale_(optimizer)
        found_inf = self._found_inf[optimizer]
        result = None
        if getattr(optimizer, "_step_supports_amp_scaling", False):
            optimizer.found_inf = found_inf
            try:
                optimizer.step(**kwargs)
            finally:
                optimizer.found_inf = None
        elif not found_inf.item():
            result = optimizer.step(**kwargs)
        self._stages[optimizer] = _Stage.STEPPED
        return result

    def update(self, new_scale: float | Tensor | None = None) -> None:
        """Change the scale, once all optimizers have stepped.

        Parameters
        ----------
        new_scale : float or Tensor, optional
            Becomes the scale; a Tensor has one element. By default the scale follows from the gradients since the last
            `update`.

        Raises
        ------
        RuntimeError
            Without `new_scale`, if no gradient was checked since the last `update`; if `scale` was never called.
        TypeError, ValueError
            If `new_scale` is something else.
        """
        if not self._enabled:
            return
        scale, growth_tracker = self._made("update()")
        if isinstance(new_scale, Tensor):
            if new_scale.numel() != 1 or new_scale.requires_grad:
                raise ValueError(
                    f"new_scale must have one element and not require grad, got shape {new_scale.shape} and "
                    f"requires_grad={new_scale.requires_grad}"
                )
            scale._buffer.copy_(new_scale._buffer.reshape(()))
        elif new_scale is not None:
            scale._buffer.fill_(check_real("new_scale", new_scale, "a number above 0", lambda x: x > 0))
        elif not self._found_inf:
            raise RuntimeError("update() must follow step() or unscale_(), but none was called since the last update()")
        else:
            gradients.update_scale(scale, growth_tracker, list(self._found_inf.values()), **self._options)
        self._found_inf, self._stages = {}, {}

    def _made(self, called: str) -> tuple[Tensor, Tensor]:
        if self._on_device is None:
            raise RuntimeError(f"{called} must follow scale(loss), which was never called")
        return self._on_device

    def get_scale(self) -> float:
        """Return the scale, 1 if not enabled. Waits for the device."""
        if not self._enabled:
            return 1.0
        return self._start[0] if self._on_device is None else self._on_device[0].item()

    def is_enabled(self) -> bool:
        """Return whether losses are scaled."""
        return self._enabled

    def state_dict(self) -> dict[str, Any]:
        """Return scale and options as PyTorch's does, numbers by name; empty if not enabled. Waits for the device."""
        if not self._enabled:
            return {}
        tracker = self._start[1] if self._on_device is None else self._on_device[1].item()
        return {"scale": self.get_scale(), **self._options, "_growth_tracker": tracker}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Set scale and options, here or PyTorch's; does nothing if not enabled.

        Parameters
        ----------
        state_dict : mapping
            As `state_dict` returns it.

        Raises
        ------
        KeyError
            If it lacks an entry, as that of a scaler that is not enabled does.
        TypeError, ValueError
            If an entry is not what it must be.
        """
        if not self._enabled:
            return
        names = ("scale", "growth_factor", "backoff_factor", "growth_interval", "_growth_tracker")
        lacking = [name for name in names if name not in state_dict]
        if lacking:
            raise KeyError(f"state_dict must have {', '.join(names)}, lacks {', '.join(lacking)}")
        self._set("scale", *(state_dict[name] for name in names))
