"""Shared by all packages: errors, signals, the process, devices, the command line."""
