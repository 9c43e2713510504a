"""Many runs: grids, sweeps, statistics, reports, and what the data alone says of policies.

Studies call `training`; nothing calls them but the commands.
"""
