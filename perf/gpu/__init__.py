"""Everything that only a GPU shows, in one command of ten minutes: ``python -m perf.gpu``, or ``make gpu``.

`steps` lists what it runs; the other modules are steps that are no command of `perf`. `bundle` makes, beforehand, what
a machine without a network lacks.
"""
