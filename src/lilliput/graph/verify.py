"""What a legal graph is. Run whenever a :class:`~lilliput.graph.Graph` is made, so no consumer meets an illegal one."""

from __future__ import annotations

import torch

from lilliput.graph.graph import Graph, Node, require
from lilliput.graph.ops import RULES, output_meta


def verify(graph: Graph) -> None:
    """Check names, order, arity, attributes, and each recorded shape and dtype against the op's own meaning.

    Raises:
        GraphError: the first broken rule, naming node and module path.
    """
    clash = set(graph.values) & set(graph.weights)
    require(not clash, f"graph '{graph.name}': {sorted(clash)} name both a value and a weight")
    require(bool(graph.outputs), f"graph '{graph.name}': has no output")
    require(
        graph.parameters <= set(graph.weights),
        f"graph '{graph.name}': parameters {sorted(graph.parameters - set(graph.weights))} are not among its weights",
    )
    metas = {name: tensor.to("meta") for name, tensor in graph.weights.items()}
    for name in graph.inputs:
        require(name in graph.values, f"graph '{graph.name}': input '{name}' has no value")
        value = graph.values[name]
        metas[name] = torch.empty(value.shape, dtype=getattr(torch, value.dtype), device="meta")
    for node in graph.nodes:
        where = f"graph '{graph.name}': node '{node.name}' ({node.op}, module '{node.source}')"
        require(node.name in graph.values, f"{where} has no value")
        require(node.name not in metas, f"{where} is made twice")
        for name in node.inputs:
            require(name in metas, f"{where} reads '{name}' before it is made")
        _verify_arity(node, where)
        meta = output_meta(node, [metas[name] for name in node.inputs])
        value = graph.values[node.name]
        got, said = (tuple(meta.shape), str(meta.dtype).removeprefix("torch.")), (value.shape, value.dtype)
        require(got == said, f"{where} makes {got[1]}{list(got[0])}, but its value says {said[1]}{list(said[0])}")
        metas[node.name] = meta
    for name in graph.outputs:
        require(name in metas and name in graph.values, f"graph '{graph.name}': output '{name}' is not made")
    extra = set(graph.values) - set(metas)
    require(not extra, f"graph '{graph.name}': values {sorted(extra)} are made by no node")


def _verify_arity(node: Node, where: str) -> None:
    rule = RULES[node.op]
    variadic = rule.inputs[-1] == "..."
    least = len([name for name in rule.inputs if not name.endswith("?") and name != "..."])
    most = None if variadic else len(rule.inputs)
    fits = len(node.inputs) >= least and (most is None or len(node.inputs) <= most)
    require(fits, f"{where} has {len(node.inputs)} inputs; {node.op} takes ({', '.join(rule.inputs)})")
    require(
        set(node.attrs) == set(rule.attrs),
        f"{where} has attributes {sorted(node.attrs)}; {node.op} takes {sorted(rule.attrs)}",
    )
