"""Ids become environments with flat observations; scripted oracles and reference scores for them.

`make.make_environment` is the way out of the room. Nothing here imports JAX.
"""
