"""Operations with several implementations, selected by device or by measurement.

Each operation has a definition in plain torch. The tests compare every implementation with it, and
it is used on other devices and in other precisions.
"""
