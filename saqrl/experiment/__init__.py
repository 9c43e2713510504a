"""Settings become runs: folders that hold what was asked, what happened and what can be deployed.

`settings` is the record of a request, `presets` its named starting points, `engine` the loop that
trains anything, `train` the path from file to policy, `run` the folder on disk.
"""
