"""The rules of the ledger: pure functions and values, no input or output, no clock, no chance.

`protocol/README.md` is the numbered specification; `spec 5.4` in a docstring names its section.
"""
