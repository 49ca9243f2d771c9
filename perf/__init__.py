"""Measurements: ``python -m perf --help``.

On a GPU, `measure` times calls. Without one, `count` counts bytes and launches in Triton's interpreter and `static`
reads the machine code of every kernel. `plot` and `report` show what they wrote.
"""
