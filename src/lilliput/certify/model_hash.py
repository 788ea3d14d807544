"""What a network computes, as a hash: certificates are kept by it."""

from __future__ import annotations

import hashlib

import torch

from lilliput.graph import Graph


def model_hash(graph: Graph) -> str:
    """SHA-256 of what the network computes: its graph, and its weights' names, shapes, types and bytes.

    >>> from lilliput.graph import trace
    >>> len(model_hash(trace(torch.nn.Linear(2, 1), torch.zeros(1, 2))))
    64
    """
    digest = hashlib.sha256(str(graph.replace(name="model")).encode())
    for name in sorted(graph.weights):
        tensor = graph.weights[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
