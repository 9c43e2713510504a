"""Scripted experts: `collect.collect(id, style=...)` returns the arrays of a plain npz data set.

`demonstrator` repeats attempts until an episode succeeds. `ogbench_tasks` makes an attempt with
OGBench's oracles, whose next subtask `planners` choose; `robosuite_tasks` with `transport`.
"""
