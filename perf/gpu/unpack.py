"""Unpack Triton's cache of compiled kernels: ``python -m perf.gpu.unpack ARCHIVE TARGET``.

Triton names the files of a kernel by absolute paths, in a file __grp__*.json beside them; they are written anew for the
folder that they are now in.
"""

from __future__ import annotations

import json
import sys
import tarfile
from pathlib import Path


def unpack(archive: Path, target: Path) -> int:
    """Unpack and rewrite; returns the number of kernels."""
    target.mkdir(parents=True, exist_ok=True)
    with tarfile.open(archive) as tar:
        tar.extractall(target, filter="data")
    groups = sorted(target.glob("*/__grp__*.json"))
    for group in groups:
        content = json.loads(group.read_text())
        folder = group.parent.resolve()
        content["child_paths"] = {name: str(folder / name) for name in content["child_paths"]}
        group.write_text(json.dumps(content))
    return len(groups)


if __name__ == "__main__":
    print("kernels:", unpack(Path(sys.argv[1]), Path(sys.argv[2])))
