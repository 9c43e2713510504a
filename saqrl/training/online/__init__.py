"""Online fine-tuning: a quantized run is continued in its environment.

A round is a few episodes in parallel, then the gradient steps that the settings prescribe, on
batches with a share of offline data. The whole state, including the replay, is one pytree.
"""
