"""From an ``nn.Module`` to a :class:`Graph`, through ``torch.export``.

Export gives ATen operators, hundreds of spellings; ``lilliput.graph.aten`` maps those we know to our thirty-five kinds. In-place operators,
views and dropout are gone afterwards, scaled dot-product attention is spelled out, and scalars become constants, so consumers see
one form of each thing. What is not in the table is refused by name, with the path of the module it came from.
"""

from __future__ import annotations

import contextlib
import io
import logging
import operator
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lilliput.errors import GraphError, UnsupportedOpError
from lilliput.graph.aten import MAY_BE_VIEWS, OPERATORS
from lilliput.graph.graph import Attribute, Graph, Node, Op, Value
from lilliput.graph.ops import RULES


def trace(model: nn.Module, example: Tensor | tuple[Tensor, ...], name: str | None = None) -> Graph:
    """The module's computation on inputs shaped like the example, as a static graph.

    Args:
        model: in evaluation mode (``model.eval()``); it is not changed, and its weights are held by reference.
        example: one input tensor, or all of them; batch 1 unless the model ties its batch to something.
        name: of the graph; the class name if None.
    Raises:
        GraphError: training-mode batch norm or dropout, shapes or branches that depend on the data, inputs that don't fit.
        UnsupportedOpError: an operator outside the table, with the module path.

    >>> print(trace(nn.Sequential(nn.Linear(4, 2), nn.ReLU()), torch.zeros(1, 4), name="tiny"))
    graph tiny
    input x: float32[1, 4]
    parameter 0.bias: float32[2]
    parameter 0.weight: float32[2, 4]
    linear_0 = linear(x, 0.weight, 0.bias) -> float32[1, 2]  # 0
    relu_0 = relu(linear_0) -> float32[1, 2]  # 1
    output relu_0
    """
    inputs = example if isinstance(example, tuple) else (example,)
    _refuse_training_mode(model)
    program = _export(model, inputs)
    return Builder(model, program, name or type(model).__name__).build()


def _refuse_training_mode(model: nn.Module) -> None:
    for path, module in model.named_modules():
        uses_batch = isinstance(module, nn.modules.batchnorm._BatchNorm) and (
            module.training or module.running_mean is None
        )
        drops = isinstance(module, nn.modules.dropout._DropoutNd) and module.training and module.p > 0
        if uses_batch or drops:
            kind = "batch norm with batch statistics" if uses_batch else "dropout in training mode"
            raise GraphError(
                f"{kind} at module '{path}' ({type(module).__name__}): its output depends on the batch or on chance; "
                "call model.eval() before tracing (and keep track_running_stats=True)"
            )


def _export(model: nn.Module, inputs: tuple[Tensor, ...]) -> torch.export.ExportedProgram:
    stack: list[str] = []
    with _following(model, stack), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            with _quiet_logs():
                program = torch.export.export(model, inputs, strict=False)
        except Exception as error:  # torch.export raises whatever the model's own code raises, among much else
            first_line = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
            raise GraphError(
                f"{type(model).__name__} cannot be made a static graph: in module '{stack[-1] if stack else ''}': "
                f"{first_line}; control flow and shapes must not depend on the data"
            ) from error
        for node in program.graph.nodes:
            if _is_inplace(node):
                _refuse_hidden_alias(node)
        if all(_is_harmless(node) for node in program.graph.nodes if _is_inplace(node)):
            return program
        # With an empty table nothing is decomposed; this pass makes in-place operators and aliases functional. It takes
        # twice as long as the export itself, so it runs only where an in-place operator could be seen elsewhere.
        return program.run_decompositions({})


def _refuse_hidden_alias(node: Any) -> None:
    """Dropout in evaluation mode returns its own input, which export does not know: what is written over one is written over both."""
    root = node.args[0]
    while root.op == "call_function" and "dropout" in str(root.target):
        root = root.args[0]
    if root is not node.args[0] and len(root.users) > 1:
        path = list((node.meta.get("nn_module_stack") or {"": ("", None)}).values())[-1][0]
        raise GraphError(
            f"'{node.target}' at module '{path}' writes over the output of a dropout, which in evaluation mode is the dropout's own "
            "input, and that is read elsewhere too; use inplace=False there"
        )


@contextlib.contextmanager
def _quiet_logs() -> Iterator[None]:
    """Export prints and logs its half-made graph before it raises; our one line says what matters."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        logging.disable(before)


def _is_inplace(node: Any) -> bool:
    return node.op == "call_function" and str(node.target).partition(".")[2].partition(".")[0].endswith("_")


def _is_harmless(node: Any) -> bool:
    """An in-place operator on a fresh tensor that nobody else reads is the same as its functional form."""
    target = node.args[0]
    kind = str(target.target).removeprefix("aten.").partition(".")[0].removesuffix("_")
    return target.op == "call_function" and len(target.users) == 1 and kind not in MAY_BE_VIEWS


@contextlib.contextmanager
def _following(model: nn.Module, stack: list[str]) -> Iterator[None]:
    """Keep the path of the module that is running on a stack, so that an error can name it."""

    def enter(path: str) -> Callable[..., None]:
        return lambda module, args: stack.append(path)

    handles = []
    for path, module in model.named_modules():
        handles.append(module.register_forward_pre_hook(enter(path)))
        handles.append(module.register_forward_hook(lambda module, args, output: (stack.pop(), None)[1]))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


class Builder:
    """Walks the exported graph once. ``env`` maps each exported node to the name of a value or weight (or to several)."""

    def __init__(self, model: nn.Module, program: torch.export.ExportedProgram, name: str) -> None:
        self.program = program
        self.name = name
        self.values: dict[str, Value] = {}
        self.nodes: list[Node] = []
        self.weights: dict[str, Tensor] = {}
        self.parameters: set[str] = set()
        self.metas: dict[str, Tensor] = {}
        self.env: dict[Any, str | tuple[str, ...]] = {}
        self.counts: dict[str, int] = {}
        self.transposes: dict[str, str] = {}
        """A weight matrix turned on its side, to the weight itself."""
        self.source = ""
        self.operator = ""
        # A tensor that several modules share is known by its first path only.
        self.first_path: dict[int, str] = {}
        named = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
        self.tensors = dict(named)
        for path, tensor in named:
            self.first_path.setdefault(id(tensor), path)

    def build(self) -> Graph:
        """The finished graph."""
        signature = self.program.graph_signature
        held = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
        constants = signature.inputs_to_lifted_tensor_constants
        inputs: list[str] = []
        for node in self.program.graph.nodes:
            if node.op == "placeholder":
                if node.name in held:
                    self._hold(node, held[node.name], node.name in signature.inputs_to_parameters)
                elif node.name in constants:
                    self.env[node] = self.constant(self.program.constants[constants[node.name]], constants[node.name])
                else:
                    inputs.append(self._input(node))
            elif node.op == "call_function":
                self._call(node)
        (output,) = (node for node in self.program.graph.nodes if node.op == "output")
        kinds = [spec.kind for spec in signature.output_specs]
        users = torch.export.graph_signature.OutputKind.USER_OUTPUT
        outputs = tuple(self.name_of(each) for each, kind in zip(output.args[0], kinds, strict=True) if kind == users)
        for name in outputs:
            if name not in self.values:
                raise GraphError(
                    f"{self.name}: an output is a constant or weight ('{name}'), not computed from the inputs"
                )
        return self._pruned(tuple(inputs), outputs)

    def _pruned(self, inputs: tuple[str, ...], outputs: tuple[str, ...]) -> Graph:
        """Drop what no output needs, then number what is left, kind by kind, so that names don't depend on the exporter."""
        needed = set(outputs)
        kept: list[Node] = []
        for node in reversed(self.nodes):
            if node.name in needed:
                kept.append(node)
                needed.update(node.inputs)
        kept.reverse()
        names = {name: name for name in (*inputs, *self.weights)}
        taken = set(names)
        for node in kept:
            number = 0
            while f"{node.op}_{number}" in taken:
                number += 1
            names[node.name] = f"{node.op}_{number}"
            taken.add(names[node.name])
        nodes = tuple(
            Node(node.op, names[node.name], tuple(names[each] for each in node.inputs), node.attrs, node.source)
            for node in kept
        )
        values = {names[name]: self.values[name] for name in (*inputs, *(node.name for node in kept))}
        weights = {name: tensor for name, tensor in self.weights.items() if name in needed}
        return Graph(
            name=self.name,
            inputs=inputs,
            outputs=tuple(names[name] for name in outputs),
            values={name: Value(name, v.shape, v.dtype, v.source) for name, v in values.items()},
            nodes=nodes,
            weights=weights,
            parameters=frozenset(self.parameters & set(weights)),
        )

    # values and weights

    def _input(self, node: Any) -> str:
        meta = node.meta.get("val")
        if not isinstance(meta, Tensor):
            raise GraphError(
                f"{self.name}: input '{node.name}' is not a tensor; trace a module that takes tensors only"
            )
        name = "x" if node.name == "input" else node.name
        while name in self.weights or name in self.values:
            name += "_in"
        self.metas[name] = torch.empty(meta.shape, dtype=meta.dtype, device="meta")
        self.values[name] = Value(name, tuple(meta.shape), str(meta.dtype).removeprefix("torch."))
        self.env[node] = name
        return name

    def _hold(self, node: Any, path: str, is_parameter: bool) -> None:
        tensor = self.tensors[path]
        name = self.first_path[id(tensor)]
        self.weights[name] = tensor.detach()
        self.metas[name] = self.weights[name].to("meta")
        if is_parameter:
            self.parameters.add(name)
        self.env[node] = name

    def constant(self, tensor: Tensor, name: str | None = None) -> str:
        """Hold a tensor that is no parameter; equal scalars are held once."""
        tensor = tensor.detach()
        if name is None:
            key = (
                "x".join(str(each) for each in tensor.flatten().tolist())
                if tensor.numel() == 1
                else self._fresh("tensor")
            )
            name = f"constant.{key}.{str(tensor.dtype).removeprefix('torch.')}"
        self.weights[name] = tensor
        self.metas[name] = tensor.to("meta")
        return name

    def name_of(self, argument: Any, beside: Any = None) -> str:
        """The name of an exported argument: a node's output, or a Python number as a constant (whole ``beside`` whole numbers)."""
        if isinstance(argument, torch.fx.Node):
            name = self.env[argument]
            if not isinstance(name, str):
                raise self.unsupported("a tuple used as one tensor")
            return name
        if isinstance(argument, (int, float, bool)):
            other = self.metas[self.name_of(beside)].dtype if isinstance(beside, torch.fx.Node) else torch.float32
            is_whole = not isinstance(argument, float) and not other.is_floating_point
            if is_whole:
                return self.constant(torch.tensor(argument))
            # A third is not the same number in both: beside float64 it must not be rounded to float32 first.
            precision = torch.float64 if other is torch.float64 else torch.get_default_dtype()
            return self.constant(torch.tensor(float(argument), dtype=precision))
        raise self.unsupported(f"argument {argument!r}")

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a value or weight emitted so far."""
        return tuple(self.metas[name].shape)

    def emit(self, op: Op, inputs: Sequence[str], **attrs: Attribute) -> str:
        """Append a node; one that reads weights only is computed now and held as a weight itself."""
        node = Node(op, self._fresh(op), tuple(inputs), attrs, self.source)
        if all(name in self.weights for name in inputs):
            folded = RULES[op].evaluate(node, *(self.weights[name] for name in inputs))
            name = self.constant(folded, f"{inputs[0]}.{node.name}")
            if any(each in self.parameters for each in inputs):
                self.parameters.add(name)
            return name
        try:
            meta = RULES[op].evaluate(node, *(self.metas[name] for name in inputs))
        except RuntimeError as error:
            raise self.unsupported(str(error).splitlines()[0]) from error
        self.metas[node.name] = meta
        self.values[node.name] = Value(
            node.name, tuple(meta.shape), str(meta.dtype).removeprefix("torch."), self.source
        )
        self.nodes.append(node)
        return node.name

    def reshape(self, name: str, shape: Sequence[int]) -> str:
        """The same data under another shape; nothing is emitted where the shape is already that."""
        shape = tuple(shape)
        if shape == self.shape(name):
            return name
        keeps_batch = bool(shape) and self.shape(name)[:1] == shape[:1] and name not in self.weights
        return self.emit(Op.RESHAPE, [name], shape=(0, *shape[1:]) if keeps_batch else shape)

    def _fresh(self, prefix: str) -> str:
        name = ""
        while not name or name in self.weights or name in self.values:
            self.counts[prefix] = self.counts.get(prefix, -1) + 1
            name = f"{prefix}_{self.counts[prefix]}"
        return name

    def unsupported(self, why: str = "") -> UnsupportedOpError:
        """The error for the operator at hand."""
        detail = f" ({why})" if why else ""
        return UnsupportedOpError(
            f"the graph has no rule for '{self.operator}'{detail}, module '{self.source}'; "
            f"it has rules for {len(OPERATORS)} operators, listed in docs/ops.md"
        )

    # operators

    def _call(self, node: Any) -> None:
        stack = node.meta.get("nn_module_stack") or {}
        self.source = list(stack.values())[-1][0] if stack else ""
        self.source = self.source.removeprefix("L['self']").removeprefix(".")
        if node.target is operator.getitem:
            several, index = self.env[node.args[0]], node.args[1]
            if isinstance(several, str) and index > 0 and node.users:
                raise self.unsupported(f"its output {index} is used; output 0 is known")
            self.env[node] = several if isinstance(several, str) else several[index]
            return
        name, _, overload = str(node.target).removeprefix("aten.").partition(".")
        self.operator = f"{name.removesuffix('_')}.{overload}" if _is_inplace(node) else f"{name}.{overload}"
        if name == "_assert_tensor_metadata":
            # Export's note to itself that a dtype is what it was; it computes nothing.
            return
        meta = node.meta.get("val")
        if any(not isinstance(size, int) for each in _tensors(meta) for size in each.shape):
            raise GraphError(f"'{self.operator}' at module '{self.source}' makes a shape that depends on the data")
        if self._fold_constant(node):
            return
        rule = OPERATORS.get(self.operator) or OPERATORS.get(self.operator.partition(".")[0])
        if rule is None or not str(node.target).startswith("aten."):
            raise self.unsupported()
        schema = node.target._schema.arguments
        arguments = {argument.name: argument.default_value for argument in schema if argument.has_default_value()}
        arguments.update(zip((argument.name for argument in schema), node.args, strict=False))
        arguments.update(node.kwargs)
        arguments["output_shapes"] = [tuple(tensor.shape) for tensor in _tensors(meta)]
        self.env[node] = rule(self, arguments)
        self._check_shape(node, meta)

    def _fold_constant(self, node: Any) -> bool:
        """Compute now what depends on no parameter and no input (``torch.ones``, ``arange``, a shifted buffer), whatever the operator."""
        reads = [self.env[each] for each in node.all_input_nodes]
        held = {
            name for name in reads if isinstance(name, str) and name in self.weights and name not in self.parameters
        }
        is_random = torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ())
        if (
            len(held) < len(set(reads))
            or is_random
            or _is_inplace(node)
            or not isinstance(node.meta.get("val"), Tensor)
        ):
            return False
        arguments = torch.fx.map_arg((node.args, node.kwargs), lambda each: self.weights[self.name_of(each)])
        value = node.target(*arguments[0], **arguments[1])
        self.env[node] = self.constant(value, f"constant.{self._fresh('folded')}")
        return True

    def _check_shape(self, node: Any, meta: Any) -> None:
        """What we emitted must have the shape that export recorded: a wrong rule is caught here, not downstream."""
        emitted = self.env[node]
        names = (emitted,) if isinstance(emitted, str) else emitted
        for name, tensor in zip(names, _tensors(meta), strict=False):
            if self.shape(name) != tuple(tensor.shape):
                raise self.unsupported(f"rule gives shape {list(self.shape(name))}, export says {list(tensor.shape)}")
            if self.metas[name].dtype != tensor.dtype:
                raise self.unsupported(f"in {tensor.dtype}; the same in {self.metas[name].dtype} is known")


def _tensors(meta: Any) -> list[Tensor]:
    if isinstance(meta, Tensor):
        return [meta]
    return [each for each in meta if isinstance(each, Tensor)] if isinstance(meta, (tuple, list)) else []
