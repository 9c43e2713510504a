"""Scripted experts: `collect.collect(id, style=...)` returns the arrays of a plain npz data set.

`demonstrator` makes one episode, `planners` choose the expert's next subtask.
"""
