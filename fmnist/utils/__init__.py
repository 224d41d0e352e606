"""What every package may use: errors, signals, the process, devices, the command line."""
