"""What the process that forks others (forked.py) has loaded. None of it may start a thread."""

import importlib

from fmnist.utils import runtime

runtime.prepare()  # before torch

for name in ("torch._dynamo", "torch.utils.tensorboard", "seaborn", "fmnist.study.run"):
    importlib.import_module(name)

importlib.import_module("fmnist.study.command")._load_libraries()
