"""What PyTorch takes to train the same layers: the whole process at its highest, and the tensors alone. Never one without the other.

This file is also the program that is measured: it imports nothing but PyTorch, so that nothing of ours is counted against it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lilliput.quantize import QuantizedGraph

_STEPS = 3
"""The first ones allocate what later ones use again."""


@dataclass(frozen=True)
class PytorchMemory:
    """One process that trains the float network with plain SGD, one sample a step, one thread."""

    high_water_bytes: int
    """Most resident memory of the process."""
    after_import_bytes: int
    """Resident memory once PyTorch is imported and nothing else has been done."""
    saved_bytes: int
    """Tensors that the forward pass keeps for the backward pass; each memory once, parameters left out."""
    parameter_bytes: int
    gradient_bytes: int
    version: str

    @property
    def tensor_bytes(self) -> int:
        """Saved tensors, parameters and gradients."""
        return self.saved_bytes + self.parameter_bytes + self.gradient_bytes


def measure(qgraph: QuantizedGraph, classes: int) -> PytorchMemory:
    """Train the float network with the layers of an integer one, batch norm folded as there, in a process of its own.

    Args:
        qgraph: ends in a linear layer.
        classes: of the labels.
    Raises:
        UnsupportedOpError: an operation for which this module knows no float equal.
        ToolchainError: the process failed.
    """
    import torch

    from lilliput.errors import ToolchainError

    with tempfile.TemporaryDirectory(prefix="lilliput-") as folder:
        file = Path(folder) / "network.pt"
        rows, columns, channels = qgraph.tensors[qgraph.input].shape
        torch.save({"layers": _layers(qgraph), "shape": (1, channels, rows, columns), "classes": classes}, file)
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        done = subprocess.run(
            [sys.executable, __file__, str(file)], capture_output=True, text=True, env=environment, timeout=600
        )
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise ToolchainError(f"PyTorch's memory for '{qgraph.name}' could not be measured: {last}")
    return PytorchMemory(**json.loads(done.stdout))


def _layers(qgraph: QuantizedGraph) -> list[dict[str, Any]]:
    """Real weights, and what else a float layer needs."""
    import numpy as np
    import torch

    from lilliput.errors import UnsupportedOpError
    from lilliput.quantize import qgraph as q

    rows: list[dict[str, Any]] = []
    for op in qgraph.ops:
        row: dict[str, Any] = {"kind": type(op).__name__, "name": op.name, "inputs": list(op.inputs)}
        # An output whose zero point is the lowest code has a ReLU absorbed into its clamp.
        row["relu"] = qgraph.tensors[op.name].zero_point == -128 and isinstance(op, (q.Conv2d, q.Linear, q.Add))
        if isinstance(op, (q.Conv2d, q.Linear)):
            scale = op.weight_scale.reshape(-1, *[1] * (op.weight.ndim - 1))
            weight = op.weight.astype(np.float64) * scale
            bias = op.bias * op.weight_scale * qgraph.tensors[op.inputs[0]].scale
            row["bias"] = torch.tensor(bias, dtype=torch.float32)
            order = (0, 3, 1, 2) if isinstance(op, q.Conv2d) else (0, 1)
            row["weight"] = torch.tensor(weight.transpose(order).copy(), dtype=torch.float32)
        if isinstance(op, (q.Conv2d, q.AvgPool2d, q.MaxPool2d)):
            top, left, bottom, right = op.padding
            row["padding"], row["stride"] = [left, right, top, bottom], list(op.stride)
        if isinstance(op, q.Conv2d):
            row["dilation"], row["groups"] = list(op.dilation), op.groups
        elif isinstance(op, (q.AvgPool2d, q.MaxPool2d)):
            row["kernel"] = list(op.kernel)
        elif isinstance(op, q.Reshape):
            row["shape"] = list(qgraph.tensors[op.name].shape)
        elif not isinstance(op, (q.Linear, q.Add, q.Mean, q.Softmax)):
            raise UnsupportedOpError(
                f"PyTorch's memory for '{qgraph.name}': no float equal of {type(op).__name__} '{op.name}' is known here; "
                "it is known for Conv2d, Linear, Add, Mean, Softmax, Reshape, AvgPool2d and MaxPool2d"
            )
        rows.append(row)
    return rows


# The program that is measured. Only PyTorch from here on.


def _main(file: str) -> None:
    import torch

    torch.set_num_threads(1)
    after_import = _resident("VmRSS")
    made = torch.load(file, weights_only=True)
    parameters = [
        each.requires_grad_()
        for row in made["layers"]
        for each in (row.get("weight"), row.get("bias"))
        if each is not None
    ]
    optimizer = torch.optim.SGD(parameters, lr=1e-3)
    own = {each.untyped_storage().data_ptr() for each in parameters}
    saved: dict[int, int] = {}

    def keep(tensor: Any) -> Any:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    x, label = torch.rand(made["shape"]), torch.zeros(1, dtype=torch.int64)
    for _ in range(_STEPS):
        saved.clear()
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            loss = torch.nn.functional.cross_entropy(_forward(made["layers"], x), label)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    found = {
        "high_water_bytes": _resident("VmHWM"),
        "after_import_bytes": after_import,
        "saved_bytes": sum(saved.values()),
        "parameter_bytes": sum(each.nbytes for each in parameters),
        "gradient_bytes": sum(each.grad.nbytes for each in parameters if each.grad is not None),
        "version": str(torch.__version__),
    }
    print(json.dumps(found))


def _forward(layers: list[Mapping[str, Any]], x: Any) -> Any:
    import torch.nn.functional as F

    values: dict[str, Any] = {layers[0]["inputs"][0]: x}
    y = x
    for row in layers:
        x, kind = values[row["inputs"][0]], row["kind"]
        if kind == "Conv2d":
            if any(row["padding"]):
                left, right, top, bottom = row["padding"]
                is_even = left == right and top == bottom
                x = x if is_even else F.pad(x, row["padding"])
                inside = (top, left) if is_even else 0
            else:
                inside = 0
            y = F.conv2d(x, row["weight"], row["bias"], row["stride"], inside, row["dilation"], row["groups"])
        elif kind == "Linear":
            y = F.linear(x, row["weight"], row["bias"])
        elif kind == "Add":
            y = x + values[row["inputs"][1]]
        elif kind == "Mean":
            y = x.mean((2, 3), keepdim=True)
        elif kind == "AvgPool2d":
            y = F.avg_pool2d(F.pad(x, row["padding"]), row["kernel"], row["stride"])
        elif kind == "MaxPool2d":
            y = F.max_pool2d(F.pad(x, row["padding"]), row["kernel"], row["stride"])
        elif kind == "Reshape":
            y = x.flatten(1) if len(row["shape"]) == 1 else x.reshape(1, row["shape"][2], *row["shape"][:2])
        else:  # a softmax: the loss has its own
            y = x
        values[row["name"]] = y.relu_() if row["relu"] and kind != "Linear" else y
    return y


def _resident(field: str) -> int:
    """Of this process, in bytes; the high-water mark where the system tells no more."""
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        import resource

        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    return int(next(line.split()[1] for line in status.splitlines() if line.startswith(field))) * 1024


if __name__ == "__main__":
    _main(sys.argv[1])
