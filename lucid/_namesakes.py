"""Raises where the `triton_kernels` that Python finds is another package's; runs when it is imported.

That package is not imported for it: another one may fail in a way of its own. Files of another package among ours are
found by `triton_kernels.installation`.
"""

from __future__ import annotations

import importlib.util
from importlib.abc import InspectLoader
from pathlib import Path

#: In the source of our `triton_kernels/__init__.py`.
MARK = "lucid-triton"


def check(ours: Path) -> None:
    """Raise an ImportError with both paths where the `triton_kernels` that is found is not the file `ours`."""
    name = "triton_kernels"
    spec = importlib.util.find_spec(name)
    if spec is None or spec.origin is None:
        raise ImportError(f"{ours} is missing: install {MARK} again", name=name, path=str(ours))
    source = spec.loader.get_source(name) if isinstance(spec.loader, InspectLoader) else None
    same_file = Path(spec.origin).resolve() == ours.resolve()
    if same_file and (source is None or MARK in source):
        return
    problem = "was overwritten by" if same_file else f"is not the one that is imported, {spec.origin}, which is of"
    raise ImportError(
        f"the {name} of {MARK}, {ours}, {problem} another package of that name: no environment can have both; "
        f"uninstall both, then install the one that is needed",
        name=name,
        path=spec.origin,
    )


check(Path(__file__).parents[1] / "triton_kernels/__init__.py")
