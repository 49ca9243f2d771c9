"""Saving and loading: exactly what was saved comes back, and a file is whole or as it was."""

from __future__ import annotations

import io
import math
import os
import stat
import sys
from collections import OrderedDict, defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch

import lucid
from lucid import nn
from tests.values import DTYPES, torch_of, values_of


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "checkpoint.safetensors"


def saved(obj: Any, path: Path) -> Any:
    lucid.save(obj, path)
    return lucid.load(path)


def assert_same(a: Any, b: Any) -> None:
    """Assert that two structures are equal: types, order, signs of zeros, NaNs, and tensors by bits."""
    assert type(a) is type(b)
    if isinstance(a, lucid.Tensor):
        assert (a.dtype, a.shape) == (b.dtype, b.shape)
        np.testing.assert_array_equal(values_of(a), values_of(b))
    elif isinstance(a, dict):
        assert [(type(key), repr(key)) for key in a] == [(type(key), repr(key)) for key in b]
        for x, y in zip(a.values(), b.values(), strict=True):
            assert_same(x, y)
    elif isinstance(a, list | tuple):
        assert len(a) == len(b)
        for x, y in zip(a, b, strict=True):
            assert_same(x, y)
    else:
        assert repr(a) == repr(b)


CHECKPOINT = {
    "model": OrderedDict({"0.weight": lucid.ones(2, 3), "0.bias": lucid.zeros(2, dtype="bfloat16")}),
    "optimizer": {
        "state": {0: {"step": 3, "exp_avg": lucid.full((2, 3), 0.1)}, 1: {"step": lucid.tensor(3.0)}},
        "param_groups": [{"lr": 0.1, "betas": (0.9, 0.999), "amsgrad": False, "params": [0, 1], "foreach": None}],
    },
    "scheduler": {"best": math.inf, "worst": -math.inf, "none": math.nan, "lrs": [1e-300, 5e-324, -0.0, 0.1 + 0.2]},
    "numbers": [0, -1, 2**63, 10**40, True, False, 1.0, 1],
    "text": ["", "ü\n\"'\\", "\x00", "tensor"],
    "empty": [{}, [], (), OrderedDict(), None, ((),)],
    1: "int key",
    "1": "str key",
    2.5: "float key",
    -math.inf: "infinite key",
    None: "no key",
    False: "bool key",
}


def test_a_checkpoint_comes_back_as_it_was(path: Path) -> None:
    assert_same(saved(CHECKPOINT, path), CHECKPOINT)


@pytest.mark.parametrize(
    "obj", [None, 1.5, "text", [], (1, (2,)), {"tensor": "a"}, {"dict": [["a", 1]]}, {"float": "inf"}]
)
def test_any_value_may_be_the_whole(path: Path, obj: Any) -> None:
    assert_same(saved(obj, path), obj)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(), (0,), (3, 0, 2), (7, 5)])
def test_tensors_of_any_dtype_and_shape_come_back(path: Path, dtype: str, shape: tuple[int, ...]) -> None:
    tensor = lucid.tensor(np.random.default_rng(1).integers(0, 2, shape), dtype=dtype)
    assert_same(saved(tensor, path), tensor)
    assert_same(saved([tensor], path), [tensor])


def test_all_bits_of_floats_come_back(path: Path) -> None:
    values = [math.nan, -math.nan, math.inf, -math.inf, -0.0, 5e-324, 1.1]
    tensor = lucid.tensor(np.array(values))
    assert saved(tensor, path).numpy().tobytes() == tensor.numpy().tobytes()


def test_strided_and_shared_memory_is_written_by_its_values(path: Path) -> None:
    base = lucid.tensor(np.arange(24.0).reshape(4, 6))
    parts = {
        "t": base.T,
        "s": base[1:3, ::2],
        "same": base,
        "again": base,
        "e": lucid.ones(1).expand(3),
        "row": base[0],
    }
    assert_same(saved(parts, path), parts)
    loaded = lucid.load(path)
    nn.init.zeros_(loaded["same"])
    assert_same({**loaded, "same": base}, parts)
    assert path.stat().st_size < 8 * (24 * 3 + 6 + 3 + 6) + 1200, "a view takes its own elements only"


def test_deferred_and_recorded_values_are_saved(path: Path) -> None:
    x = lucid.randn(3, 4, requires_grad=True)
    y = nn.functional.softmax(x / 2.0)
    loaded = saved({"x": x, "y": y}, path)
    np.testing.assert_array_equal(loaded["y"].numpy(), y.numpy())
    assert not loaded["x"].requires_grad


def test_a_state_dict_is_a_file_for_other_readers_by_the_same_names(path: Path) -> None:
    names = ["0.weight", "a.b", "", "ü/'\"\\ .", "tensor", "lucid"]
    state = {name: lucid.full((i + 1,), i) for i, name in enumerate(names)}
    lucid.save(state, path)
    read = safetensors.torch.load_file(path)
    assert set(read) == set(names)
    for name in names:
        assert torch.equal(read[name], torch_of(state[name]))
    assert_same(lucid.load(path), state)


def test_tied_weights_have_every_name(path: Path) -> None:
    model = nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 5, bias=False))
    model[1].weight = model[0].weight
    lucid.save(model.state_dict(), path)
    assert set(safetensors.torch.load_file(path)) == {"0.weight", "1.weight"}
    twin = nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 5, bias=False))
    twin[1].weight = twin[0].weight
    twin.load_state_dict(lucid.load(path))
    np.testing.assert_array_equal(twin[1].weight.numpy(), model[0].weight.numpy())


def test_names_that_would_be_the_same_are_told_apart(path: Path) -> None:
    obj = {
        "a.b": lucid.ones(1),
        "a": {"b": lucid.zeros(2)},
        "a.b_": lucid.ones(3),
        1: [lucid.ones(4)],
        "1.0": lucid.ones(5),
    }
    assert_same(saved(obj, path), obj)
    reserved = {"__metadata__": lucid.ones(2)}
    assert_same(saved(reserved, path), reserved)


def test_a_file_of_others_is_loaded_as_a_dict(path: Path) -> None:
    safetensors.torch.save_file({"a": torch.ones(2), "b.c": torch.zeros(1, dtype=torch.int32)}, path, {"format": "pt"})
    assert_same(lucid.load(path), {"a": lucid.ones(2), "b.c": lucid.zeros(1, dtype="int32")})
    safetensors.torch.save_file({}, path)
    assert lucid.load(path) == {}


def test_tensors_are_put_on_the_default_device_or_where_one_says(path: Path) -> None:
    lucid.save(lucid.ones(1), path)
    assert lucid.load(path).device == lucid.get_default_device()
    assert lucid.load(path, map_location="cpu").device == "cpu"
    with pytest.raises(ValueError, match=r"device must be 'cpu'.*got 'tpu'"):
        lucid.load(path, map_location="tpu")


def test_loaded_tensors_do_not_depend_on_the_file(path: Path) -> None:
    loaded = saved(lucid.ones(3), path)
    path.write_bytes(bytes(path.stat().st_size))
    assert loaded.tolist() == [1.0, 1.0, 1.0]


@pytest.mark.parametrize("as_given", [str, Path, lambda path: path.name], ids=["str", "path object", "relative"])
def test_a_path_may_be_given_in_any_form(path: Path, as_given: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(path.parent)
    lucid.save([1], as_given(path))
    assert lucid.load(as_given(path)) == [1]


@pytest.mark.skipif(sys.platform == "win32", reason="has no such modes and links")
def test_a_file_has_the_usual_mode_and_a_link_stays_one(path: Path) -> None:
    link, plain = path.with_name("link"), path.with_name("plain")
    plain.write_bytes(b"")
    link.symlink_to(path)
    lucid.save([1], link)
    assert link.is_symlink()
    assert lucid.load(path) == [1]
    assert stat.S_IMODE(path.stat().st_mode) == stat.S_IMODE(plain.stat().st_mode)


@pytest.mark.parametrize("step", ["safetensors.torch.save_file", "os.fsync", "os.replace", "os.chmod"])
@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_a_failure_leaves_the_older_file_and_nothing_else(
    path: Path, step: str, error: type[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    lucid.save({"old": lucid.ones(3)}, path)
    before = path.read_bytes()

    def fail(*args: Any, **kwargs: Any) -> None:
        raise error("no space left")

    with monkeypatch.context() as patch:
        patch.setattr(step, fail)
        with pytest.raises(error, match="no space left"):
            lucid.save({"new": lucid.zeros(9)}, path)
    assert path.read_bytes() == before
    assert os.listdir(path.parent) == [path.name]


def test_the_file_is_written_to_the_disk_before_it_gets_its_name(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []

    def recorded(step: str, original: Callable[..., None]) -> Callable[..., None]:
        def call(*args: Any) -> None:
            done.append(step)
            original(*args)

        return call

    for step in ("fsync", "replace"):
        monkeypatch.setattr(os, step, recorded(step, getattr(os, step)))
    lucid.save([1], path)
    assert done == ["fsync", "replace", "fsync"]


def test_an_error_of_safetensors_names_the_file(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: Any, **kwargs: Any) -> None:
        raise safetensors.SafetensorError("I/O error")

    monkeypatch.setattr(safetensors.torch, "save_file", fail)
    with pytest.raises(OSError, match=r"could not write '.*checkpoint.safetensors': I/O error"):
        lucid.save([1], path)
    assert os.listdir(path.parent) == []


def cyclic() -> Any:
    obj: dict[str, Any] = {"a": [1]}
    obj["a"].append(obj)
    return obj


@pytest.mark.parametrize(
    ("obj", "error", "message"),
    [
        (lambda: {"a": [nn.Linear(1, 1)]}, TypeError, r"^obj\['a'\]\[0\] must be a lucid.Tensor, .* got Linear$"),
        (lambda: {"f": (1, [len])}, TypeError, r"^obj\['f'\]\[1\]\[0\] must .* got builtin_function_or_method$"),
        (lambda: object(), TypeError, "^obj must be a lucid.Tensor, .* got object$"),
        (lambda: [torch.ones(1)], TypeError, r"obj\[0\] must .* got torch.Tensor"),
        (lambda: {1: np.ones(1)}, TypeError, r"obj\[1\] must .* got numpy.ndarray"),
        (lambda: [1j], TypeError, "got complex"),
        (lambda: [b"bytes"], TypeError, "got bytes"),
        (lambda: {"x": defaultdict(list)}, TypeError, "got defaultdict"),
        (lambda: {"x": {(1, 2): 3}}, TypeError, r"^each key of obj\['x'\] must be a str, .* got tuple$"),
        (cyclic, ValueError, r"^obj\['a'\]\[1\] must not contain itself$"),
    ],
)
def test_what_cannot_be_saved_is_named_by_its_place(
    path: Path, obj: Callable[[], Any], error: type[Exception], message: str
) -> None:
    lucid.save([1], path)
    with pytest.raises(error, match=message):
        lucid.save(obj(), path)
    assert lucid.load(path) == [1]


def test_one_value_may_be_in_several_places(path: Path) -> None:
    shared = [1, lucid.ones(2)]
    assert_same(saved({"a": shared, "b": shared}, path), {"a": shared, "b": shared})


def test_numbers_of_numpy_that_are_pythons_are_saved(path: Path) -> None:
    assert saved([np.float64(0.1), np.str_("a")], path) == [0.1, "a"]
    with pytest.raises(TypeError, match="got int64"):
        lucid.save(np.int64(1), path)


def whole_file(path: Path) -> bytes:
    lucid.save({"a": lucid.ones(3), "b": 2}, path)
    return path.read_bytes()


@pytest.mark.parametrize("length", [0, 4, 8, 20, -12, -1])
def test_a_truncated_file_is_refused(path: Path, length: int) -> None:
    path.write_bytes(whole_file(path)[:length])
    with pytest.raises(ValueError, match=r"path must be a whole safetensors file, but '.*checkpoint.*' is not: \w"):
        lucid.load(path)


def test_a_file_of_another_kind_is_refused_and_torchs_is_recognized(path: Path) -> None:
    path.write_text("not a checkpoint, but a text of some length")
    with pytest.raises(ValueError, match="whole safetensors file, but"):
        lucid.load(path)
    for zipped in (True, False):
        torch.save({"a": torch.ones(1)}, path, _use_new_zipfile_serialization=zipped)
        with pytest.raises(ValueError, match=r"for a file of torch.save, use torch.load and lucid.from_torch"):
            lucid.load(path)


@pytest.mark.parametrize(
    "metadata",
    ["", "{", '{"tensor": "b"}', '{"dict": 3}', '{"set": []}', "{}", '{"dict": [[[], 1]]}', '{"float": "x"}'],
)
def test_metadata_of_another_kind_is_refused(path: Path, metadata: str) -> None:
    safetensors.torch.save_file({"a": torch.ones(1)}, path, {"lucid": metadata})
    with pytest.raises(ValueError, match=r"checkpoint.safetensors' has metadata that lucid.save does not write"):
        lucid.load(path)


def test_a_dtype_that_lucid_lacks_is_named(path: Path) -> None:
    safetensors.torch.save_file({"w": torch.ones(1).to(torch.float8_e4m3fn)}, path)
    with pytest.raises(TypeError, match=r"the dtype of 'w' in '.*checkpoint.safetensors' must be one of .*float8"):
        lucid.load(path)


@pytest.mark.parametrize("call", [lambda path: lucid.load(path), lambda path: lucid.save([1], path)])
def test_what_is_no_path_to_a_file_is_named(path: Path, call: Callable[[Any], Any]) -> None:
    with pytest.raises(IsADirectoryError, match="path must be a file, got the directory"):
        call(path.parent)
    with pytest.raises(FileNotFoundError, match=r"path must .*nowhere"):
        call(path / "nowhere" / "file")
    for other in (3, None, b"bytes", io.BytesIO()):
        with pytest.raises(TypeError, match="path must be a str or a path object, got"):
            call(other)


def test_a_model_is_unchanged_where_its_file_does_not_fit(path: Path) -> None:
    model = nn.Linear(3, 2)
    before = values_of(model.weight)
    lucid.save(nn.Linear(4, 2).state_dict(), path)
    with pytest.raises(RuntimeError, match="size mismatch for weight"):
        model.load_state_dict(lucid.load(path))
    np.testing.assert_array_equal(values_of(model.weight), before)


def test_training_resumes_with_the_same_random_numbers(path: Path) -> None:
    lucid.save({"rng": lucid.get_rng_state()}, path)
    first = lucid.rand(5).tolist()
    lucid.manual_seed(77)
    lucid.set_rng_state(lucid.load(path)["rng"])
    assert lucid.rand(5).tolist() == first


def test_torch_computes_nothing(path: Path) -> None:
    from tests.test_no_torch_arithmetic import NoArithmetic

    with NoArithmetic():
        base = lucid.ones(3, 4)
        saved({"a": base.T, "b": base, "c": base[1:]}, path)
