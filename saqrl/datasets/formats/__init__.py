"""One module a format: what it reads, which files it claims, and how rows come out of them.

`saqrl.datasets` states what such a module offers (`Reader`) and lists them in FORMATS.
"""
