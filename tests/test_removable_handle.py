"""Handles of hooks: their ids, what they hold, and their copies."""

from __future__ import annotations

import copy
import gc
import pickle
import weakref
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

from lucid import nn
from lucid._hooks import RemovableHandle, register


def test_handles_have_ids_of_their_own_and_hold_nothing() -> None:
    hooks: OrderedDict[int, Callable[..., Any]] = OrderedDict()
    first, second = register(hooks, print), register(hooks, repr, prepend=True)
    assert list(hooks.items()) == [(second.id, repr), (first.id, print)]
    alive = weakref.ref(hooks)
    del hooks
    gc.collect()
    assert alive() is None
    first.remove()


def test_a_fresh_id_is_never_one_in_use() -> None:
    last = RemovableHandle(OrderedDict()).id
    hooks = OrderedDict.fromkeys(range(last + 1, last + 9), print)
    assert register(hooks, repr).id not in range(last + 1, last + 9)
    assert len(hooks) == 9


def test_a_copied_handle_removes_the_copied_hook() -> None:
    module = nn.Tanh()
    module.handle = module.register_forward_pre_hook(print)
    for twin in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        twin.handle.remove()
        assert not twin._forward_pre_hooks
        assert module._forward_pre_hooks
