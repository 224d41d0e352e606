"""Operations that have more than one way to be computed, chosen by device and measurement.

Each has a definition in plain torch, which is what it *means*: the fall-back for odd devices and
precisions, and what the tests hold every back end to.
"""
