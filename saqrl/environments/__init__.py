"""Ids become environments: `make.make_environment(id)` returns a `flat.FlatEnvironment`.

That type leaves the room: float32 vectors in and out, info["success"] where the task can tell.
`families.FAMILIES` is the registry, one entry a family, and `add_family` takes another. Beside it
stand scripted experts (`oracles`) and reference scores (`scores`). Nothing here imports JAX.
"""
