"""``scratchnn bench``: the layers of scratchnn and torch timed side by side.

:mod:`~scratchnn.bench.cases` says what is timed, :mod:`~scratchnn.bench.cost` how much work it is,
:mod:`~scratchnn.bench.timing` how clocks are read, :mod:`~scratchnn.bench.measure` runs a case,
:mod:`~scratchnn.bench.limits` measures what the machine could do at best, and
:mod:`~scratchnn.bench.report` and :mod:`~scratchnn.bench.chart` show what came out.
"""
