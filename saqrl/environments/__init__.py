"""Ids become environments: `make.make_environment(id)` returns a `flat.FlatEnvironment`.

That type leaves the room: float32 vectors in and out, info["success"] where the task can tell.
`families.FAMILIES` lists what is known of whole packages; a single environment of somebody else is
an entry of `saqrl.registry`. Beside them stand scripted experts (`oracles`) and reference scores
(`scores`). Nothing here imports JAX.
"""
