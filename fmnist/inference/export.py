"""Writes a network as an ONNX file."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import torch

from fmnist.functional.cnn import IMAGE_SIZE
from fmnist.rundir import files
from fmnist.utils.errors import UserError

PACKAGES = ("onnx", "onnxscript")
"""What torch's exporter needs, the extra ``onnx`` of this package."""


def write_onnx(network: torch.nn.Module, path: Path) -> None:
    """Write a network as an ONNX file by torch's exporter.

    Args:
        network: the network, float32, in evaluation mode. Its input is named ``images``, its output
            ``logits``; both may have any number of images.
        path: the file; one that exists is replaced.

    Raises:
        UserError: A package is missing, or the exporter does not know an operation.
    """
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(f"ONNX needs {' and '.join(missing)}: pip install {' '.join(missing)}")
    example = torch.zeros(2, 1, IMAGE_SIZE, IMAGE_SIZE)
    try:
        program = torch.onnx.export(
            network,
            (example,),
            input_names=["images"],
            output_names=["logits"],
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            dynamo=True,
            verbose=False,
        )
    except torch.onnx.errors.OnnxExporterError as error:
        reason = " ".join(str(error.__cause__ or error).split())[:200]
        raise UserError(f"the model cannot be written as ONNX ({reason})") from error
    assert program is not None
    files.write_bytes(path, program.model_proto.SerializeToString())
