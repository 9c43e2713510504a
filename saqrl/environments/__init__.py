"""Environments by id: `make.make_environment(id)` returns a `flat.FlatEnvironment`.

Other packages use that type: float32 vectors in and out, info["success"] if the task reports it.
`families.FAMILIES` describes whole packages; a single environment of your own is an entry of
`saqrl.registry`. There are also scripted experts (`oracles`) and reference scores (`scores`).
Nothing here imports JAX.
"""
