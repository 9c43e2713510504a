"""Fine-tuning online: a quantized run goes on in its environment.

A round is a few episodes side by side, then so many gradient steps as the settings ask for, on
batches of which a share is offline data. All of its state, replay included, is one pytree.
"""
