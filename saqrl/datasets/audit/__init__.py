"""What is in a log and what is wrong with it.

`findings.audit(transitions)` returns an `Audit`, the type that leaves this room: numbers, and
sentences with remedies. `text` shows one in a terminal, `picture` draws it.
"""
