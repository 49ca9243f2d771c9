"""Distillation with transformers.Trainer: on one process or several, with accumulated gradients, and evaluation."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from typing import Any

import torch
import transformers
from torch import Tensor, nn

from lucid.examples.distributed import tokens_per_process
from lucid.torch import DistillationLoss


class DistillationTrainer(transformers.Trainer):
    """A `transformers.Trainer` whose loss is the divergence of a causal language model from a teacher.

    The loss of a training step is the mean over all its tokens: of all processes, and of all batches whose gradients
    are accumulated. A token counts where its label is not the criterion's `ignored_label`; the logits before it are
    compared. Processes average their gradients, so the divisor is the average number of tokens per process
    (`lucid.examples.distributed`). With ``average_tokens_across_devices=False`` each process takes the mean over its
    own tokens.

    The loss of `evaluate` is the mean over all tokens of the dataset, whatever the batches and processes.

    It may stand before another Trainer among the bases of a class.

    Parameters
    ----------
    *args, **kwargs
        As for `transformers.Trainer`. Examples need ``labels``; the model's forward need not take them.
    teacher : torch.nn.Module
        It takes the model's inputs. Each process holds all of it, in evaluation mode, on its device; one that was
        loaded with a device map stays where it is.
    criterion : lucid.torch.DistillationLoss, optional
        With ``reduction="mean"``. By default the forward KL divergence.

    Raises
    ------
    TypeError
        If the criterion is no DistillationLoss; if a model returns no mapping with ``logits``.
    ValueError
        If the criterion has another reduction; for a `compute_loss_func`, a `label_smoothing_factor`, and context or
        sequence parallelism; if a batch has no labels.
    """

    teacher: Any
    criterion: Any
    criterion_type: type[nn.Module] = DistillationLoss

    def __init__(self, *args: Any, teacher: nn.Module, criterion: Any = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if not hasattr(teacher, "hf_device_map"):
            teacher.to(self.args.device)
        if criterion is None:
            criterion = self.default_criterion(teacher)
        self._set_loss(teacher.eval().requires_grad_(False), criterion)

    def default_criterion(self, teacher: Any) -> Any:
        """The criterion where none is given."""
        return self.criterion_type()

    def _set_loss(self, teacher: Any, criterion: Any) -> None:
        """Set the loss, on a Trainer that is initialized otherwise."""
        if not isinstance(criterion, self.criterion_type):
            raise TypeError(
                f"criterion must be a lucid.torch.{self.criterion_type.__name__}, got {type(criterion).__name__}"
            )
        if criterion.reduction != "mean":
            raise ValueError(f"criterion must have reduction 'mean', got {criterion.reduction!r}")
        if self.compute_loss_func is not None:
            raise ValueError("compute_loss_func must be None, as the loss is the criterion's, got a function")
        if self.args.label_smoothing_factor:
            raise ValueError(
                "label_smoothing_factor must be 0, as the loss has no label smoothing, got "
                f"{self.args.label_smoothing_factor}"
            )
        if self.get_cp_size() * self.get_sp_size() > 1:
            raise ValueError(
                "context and sequence parallelism must be off, as labels are shifted within whole sequences, got sizes "
                f"{self.get_cp_size()} and {self.get_sp_size()}"
            )
        self.teacher, self.criterion = teacher, criterion
        self._evaluated = torch.zeros(2, dtype=torch.float64, device=self.args.device)  # sum over tokens, their number
        # Trainer asks the model's forward whether losses of accumulated batches need no further division, and what the
        # labels are called, without which it evaluates no loss.
        self.model_accepts_loss_kwargs, self.label_names = True, ["labels"]

    def model_inputs(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """What of a batch the model and the teacher get."""
        return {name: value for name, value in inputs.items() if name != "labels"}

    def tokens(self, batches: list[Mapping[str, Any]]) -> Tensor:
        """The number of tokens that the losses of these batches are divided by."""
        labels = [_shifted_labels(batch).to(self.args.device) for batch in batches]
        ignored = self.criterion.ignored_label
        if self.args.average_tokens_across_devices:
            return tokens_per_process(labels, ignored)
        return torch.stack([(each != ignored).sum() for each in labels]).sum()

    def get_batch_samples(self, epoch_iterator: Iterator[Any], num_batches: int, device: Any) -> tuple[list[Any], Any]:
        """The batches of a training step, and what `compute_loss` divides by: `tokens` of them."""
        batches = list(itertools.islice(epoch_iterator, num_batches))
        return batches, self.tokens(batches) if batches else None

    def compute_loss(
        self, model: Any, inputs: Mapping[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The sum over tokens of a batch divided by `num_items_in_batch`; in evaluation, and without it, their mean."""
        tokens = {"labels": _shifted_labels(inputs), "normalizer": num_items_in_batch if model.training else None}
        loss, outputs = self.loss_and_outputs(model, self.model_inputs(inputs), tokens, return_outputs)
        return (loss, outputs) if return_outputs else loss

    def loss_and_outputs(
        self, model: Any, features: dict[str, Any], tokens: dict[str, Any], return_outputs: bool
    ) -> tuple[Tensor, Any]:
        """The loss of a batch, and what the model returned; `tokens` are labels and normalizer of the criterion."""
        with torch.no_grad(), self.accelerator.autocast():
            teacher_logits = logits_of("teacher", self.teacher(**features))
        outputs = model(**features)
        return self.criterion(logits_of("model", outputs)[:, :-1], teacher_logits[:, :-1], **tokens), outputs

    def prediction_step(
        self, model: Any, inputs: Mapping[str, Any], prediction_loss_only: bool, ignore_keys: Any = None
    ) -> tuple[Any, Any, Any]:
        """As Trainer's; keeps the sum over tokens, and their number."""
        inputs = self._without_repeated(inputs)
        loss, logits, labels = super().prediction_step(model, inputs, prediction_loss_only, ignore_keys)
        if loss is not None:
            count = (_shifted_labels(inputs) != self.criterion.ignored_label).sum().to(loss.device)
            self._evaluated += torch.stack((loss.double() * count, count))
        return loss, logits, labels

    def evaluation_loop(self, *args: Any, metric_key_prefix: str = "eval", **kwargs: Any) -> Any:
        """As Trainer's, whose loss is a mean over batches; this one is the mean over tokens."""
        self._evaluated.zero_()
        output = super().evaluation_loop(*args, metric_key_prefix=metric_key_prefix, **kwargs)
        total, count = self.accelerator.reduce(self._evaluated, reduction="sum").tolist()
        if f"{metric_key_prefix}_loss" in output.metrics:
            output.metrics[f"{metric_key_prefix}_loss"] = total / max(count, 1)
        return output

    def _without_repeated(self, inputs: Mapping[str, Any]) -> Mapping[str, Any]:
        """A batch without the labels of examples that fill up the last one of several processes."""
        state = self.accelerator.gradient_state
        if "labels" not in inputs or not (state.end_of_dataloader and state.remainder > 0):
            return inputs
        labels = inputs["labels"].clone()
        labels[max(state.remainder - self.accelerator.process_index * len(labels), 0) :] = self.criterion.ignored_label
        return {**inputs, "labels": labels}


def _shifted_labels(inputs: Mapping[str, Any]) -> Tensor:
    """The labels of logits but the last: each is the next token."""
    if "labels" not in inputs:
        raise ValueError(f"a batch must have labels, got {', '.join(map(repr, inputs))}")
    return inputs["labels"][:, 1:]


def logits_of(name: str, outputs: Any) -> Tensor:
    """The logits that a model returned."""
    if not isinstance(outputs, Mapping) or "logits" not in outputs:
        raise TypeError(f"{name} must return a mapping with 'logits', got a {type(outputs).__name__}")
    return outputs["logits"]
