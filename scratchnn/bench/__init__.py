"""``scratchnn bench``: the layers of scratchnn and torch measured side by side.

*What is measured.* :mod:`~scratchnn.bench.cases` says what a case is, :mod:`~scratchnn.bench.layers` and
:mod:`~scratchnn.bench.networks` hold the tables, :mod:`~scratchnn.bench.cost` tells how much work a case is and
:mod:`~scratchnn.bench.groups` what kind.

*How.* :mod:`~scratchnn.bench.timing` reads clocks, :mod:`~scratchnn.bench.measure` times a case,
:mod:`~scratchnn.bench.limits` what the machine could do at best; :mod:`~scratchnn.bench.memory`,
:mod:`~scratchnn.bench.scaling` and :mod:`~scratchnn.bench.overhead` measure the rest.

*What came out.* :mod:`~scratchnn.bench.report` and :mod:`~scratchnn.bench.chart`, and for the others
:mod:`~scratchnn.bench.memory_report` and :mod:`~scratchnn.bench.scaling_report`; :mod:`~scratchnn.bench.targets` holds
it against the project's goals.
"""
