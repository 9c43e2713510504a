"""A policy leaves the workshop: one file that needs no JAX, what plays it, and a server of it.

`runtime` needs NumPy alone (onnxruntime for ONNX files) and `server` no more than `runtime`.
"""
