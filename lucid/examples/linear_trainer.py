"""Distillation with transformers.Trainer from hidden states: logits of all tokens at once do not exist."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from lucid.examples.trainer import DistillationTrainer, logits_of
from lucid.torch import LinearDistillationLoss


class LinearDistillationTrainer(DistillationTrainer):
    """A `DistillationTrainer` whose loss is computed from what the models' output embeddings (``lm_head``) get.

    Losses are divided as there. The models run as a whole, so that what wraps them (DistributedDataParallel, FSDP) and
    what precedes their output embeddings work as without this class; their output embeddings get the last position
    alone. The loss is computed while the student runs, and is among its outputs.

    That the logits of both models are what the criterion makes of hidden states is checked once, at the last position.

    Logits of all tokens exist where they are asked for: in `predict`, in `evaluate` with ``compute_metrics``, and for
    ``return_outputs=True`` of `compute_loss`.

    Parameters
    ----------
    *args, **kwargs
        As for `DistillationTrainer`.
    teacher : transformers.PreTrainedModel
        With output embeddings on the student's device.
    criterion : lucid.torch.LinearDistillationLoss, optional
        With ``reduction="mean"``. By default the forward KL divergence, with the models' `logit_options`.

    Raises
    ------
    TypeError
        If the criterion is no LinearDistillationLoss; if the output embeddings of a model are no linear layer, or are
        not called once when it runs; if a model returns no mapping with ``logits``.
    ValueError
        As for `DistillationTrainer`; for several GPUs in one process; if a model's logits are not the criterion's.
    """

    criterion_type = LinearDistillationLoss
    _loss_only = False

    def default_criterion(self, teacher: Any) -> LinearDistillationLoss:
        """The forward KL divergence."""
        return LinearDistillationLoss(**logit_options(self.model, teacher))

    def _set_loss(self, teacher: Any, criterion: Any) -> None:
        super()._set_loss(teacher, criterion)
        if self.args.n_gpu > 1:
            raise ValueError(
                f"each process must have one GPU, got {self.args.n_gpu}: start one process per GPU, as with torchrun"
            )
        for name, model in (("student", self.model), ("teacher", teacher)):
            _head(name, model)
        self._checked: set[str] = set()

    def loss_and_outputs(
        self, model: Any, features: dict[str, Any], tokens: dict[str, Any], return_outputs: bool
    ) -> tuple[Tensor, Any]:
        """The loss of a batch, and what the model returned, with logits of the last position where no others count."""
        of_teacher: dict[str, Tensor | None] = {}

        def keep(hidden: Tensor, head: nn.Linear) -> None:
            of_teacher.update(teacher_hidden=hidden[:, :-1], teacher_weight=head.weight, teacher_bias=head.bias)

        def loss_of(hidden: Tensor, head: nn.Linear) -> Tensor:
            loss: Tensor = self.criterion(hidden[:, :-1], head.weight, student_bias=head.bias, **of_teacher, **tokens)
            return loss

        with torch.no_grad(), self.accelerator.autocast(), self._at_head("teacher", self.teacher, keep):
            self.teacher(**features)
        student = self.accelerator.unwrap_model(model, keep_torch_compile=False)
        with self._at_head("student", student, loss_of, whole=return_outputs and not self._loss_only):
            outputs = model(**features)
        return outputs["loss"], outputs

    @contextlib.contextmanager
    def _at_head(
        self, name: str, model: Any, take: Callable[[Tensor, nn.Linear], Tensor | None], whole: bool = False
    ) -> Iterator[None]:
        """Where `model` runs: `take` gets hidden states, and what it returns becomes the output's loss.

        Logits are those of the last position, or if `whole` of all.
        """
        head = _head(name, model)
        taken: list[Tensor | None] = []
        raw: list[Tensor] = []

        def before(_: nn.Module, args: tuple[Tensor]) -> tuple[Tensor]:
            taken.append(take(args[0], head))
            return args if whole else (args[0][:, -1:],)

        def after(_: nn.Module, __: Any, logits: Tensor) -> None:
            raw.append(logits.detach()[:, -1:])

        def end(_: nn.Module, __: Any, outputs: Any) -> Any:
            logits = logits_of(name, outputs)[:, -1:]
            if len(taken) != 1:
                raise TypeError(f"{name} must call its output embeddings once, it called them {len(taken)} times")
            if name not in self._checked:
                self._check(name, model, raw[0], logits.detach())
                self._checked.add(name)
            if taken[0] is not None:
                outputs["loss"] = taken[0]
            return outputs

        with contextlib.ExitStack() as hooks:
            for handle in (
                head.register_forward_pre_hook(before),
                head.register_forward_hook(after),
                # Before FSDP's, which looks among the outputs for what backward starts at.
                model.register_forward_hook(end, prepend=True),
            ):
                hooks.callback(handle.remove)
            yield

    def _check(self, name: str, model: Any, raw: Tensor, logits: Tensor) -> None:
        """Raise unless a model's logits are what the criterion makes of its output embeddings' result."""
        scale, softcap = (getattr(self.criterion, f"{name}_{option}") for option in ("logit_scale", "softcap"))
        expected = raw.float() * scale
        if softcap is not None:
            expected = softcap * (expected / softcap).tanh()
        expected, got = (x.float()[..., : self.criterion.vocab_size] for x in (expected, logits))
        rounding = torch.finfo(raw.dtype)
        if got.shape != expected.shape or not torch.allclose(
            got, expected, rtol=8 * rounding.eps, atol=rounding.tiny, equal_nan=True
        ):
            raise ValueError(
                f"criterion must have the {name}'s {name}_logit_scale and {name}_softcap, got {scale} and {softcap}, "
                f"which do not give its logits: pass **logit_options(student, teacher), here {_options(name, model)}"
            )

    def prediction_step(
        self, model: Any, inputs: Any, prediction_loss_only: bool, ignore_keys: Any = None
    ) -> tuple[Any, Any, Any]:
        """As `DistillationTrainer`'s."""
        self._loss_only = prediction_loss_only
        try:
            return super().prediction_step(model, inputs, prediction_loss_only, ignore_keys)
        finally:
            self._loss_only = False


def logit_options(student: Any, teacher: Any) -> dict[str, Any]:
    """Options of `lucid.torch.LinearDistillationLoss` that the configurations of two models of transformers ask for.

    Scales and softcaps of logits, by the names that Gemma, RecurrentGemma, Cohere, FalconH1, Granite and HyperCLOVA X
    give them. `LinearDistillationTrainer` checks them against the models' logits.
    """
    return {**_options("student", student), **_options("teacher", teacher)}


def _options(name: str, model: Any) -> dict[str, float]:
    config: Any = getattr(model, "config", None)
    config = config.get_text_config() if hasattr(config, "get_text_config") else config

    def of_config(*names: str) -> float | None:
        return next((value for each in names if (value := getattr(config, each, None)) is not None), None)

    scale = of_config("logit_scale", "lm_head_multiplier")
    if (scaling := of_config("logits_scaling")) is not None:
        scale = scaling if str(config.model_type).startswith("hyperclovax") else 1 / scaling
    options = {"logit_scale": scale, "softcap": of_config("final_logit_softcapping", "logits_soft_cap")}
    return {f"{name}_{option}": float(value) for option, value in options.items() if value is not None}


def _head(name: str, model: Any) -> nn.Linear:
    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    if not isinstance(head, nn.Linear):
        raise TypeError(f"{name} must have a linear layer as its output embeddings, got a {type(head).__name__}")
    return head
