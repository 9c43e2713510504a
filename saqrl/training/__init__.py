"""Settings become a run: a folder that holds what was asked, what happened, what can be deployed.

`settings` is the record of a request, `presets` its named starting points, `engine` the loop that
trains anything, `train` the path from file to policy, `run_folder` what is on disk.
"""
