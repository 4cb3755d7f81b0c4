"""The simulator: how long a step takes and what memory it needs, on a machine that is not there.

Pure Python. From a :class:`workload.Workload` (sizes, layout, batch) and a
:class:`machine.Machine` (rates, memory, links) :func:`step.estimate` gives time and memory:
operators (:mod:`operators`) with the rates they reach (:mod:`efficiency`), collectives
(:mod:`collectives`), the pipeline's schedule (:mod:`loopmoe_train.spec.schedule`), memory
(:mod:`memory`). :mod:`search` looks for the best layout.
"""
