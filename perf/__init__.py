"""Measurements: ``python -m perf --help``.

On a GPU, `sweep` and `overhead` measure time. Without one, `traffic` counts bytes and launches in Triton's interpreter
and `static` reads the machine code of every kernel. `plot` and `report` show what the others wrote,
and `collect` takes what ``make gpu`` wrote into the results.
"""
