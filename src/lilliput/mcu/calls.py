"""Kernel calls as C: statements at planned offsets, and the parameter structs and constant tables that calls share."""

from __future__ import annotations

import re
from collections.abc import Iterable
from textwrap import fill

from lilliput.mcu.kernel_call import ConstantTable
from lilliput.mcu.lowering import lower
from lilliput.mcu.plan import Plan, Step
from lilliput.mcu.views import first_byte
from lilliput.quantize.qgraph import Crop


class Declarations:
    """Structs and tables, each once: tiles of one layer differ in little."""

    def __init__(self) -> None:
        self.structs: dict[tuple[str, str], tuple[str, str]] = {}
        """From type and initializer to the name and a comment."""
        self.tables: dict[tuple[str, bytes], ConstantTable] = {}

    def struct(self, c_type: str, params: str, constants: Iterable[ConstantTable], comment: str) -> str:
        """The name of a struct with this initializer, whose constants may be an earlier call's."""
        for table in constants:
            params = re.sub(rf"\b{table.name}\b", self.table(table), params)
        name, _ = self.structs.setdefault((c_type, params), (f"call{len(self.structs)}", comment))
        return name

    def table(self, table: ConstantTable) -> str:
        """The name of a table with these numbers."""
        return self.tables.setdefault((table.c_type, table.values.tobytes()), table).name

    def structs_c(self) -> list[str]:
        """Lines of a C file."""
        lines = []
        for (kind, params), (name, comment) in self.structs.items():
            definition = f"static const {kind} {name} = {params};"
            lines += [
                "",
                f"/* {comment} */",
                fill(definition, 118, subsequent_indent="    ", break_long_words=False),
            ]
        return lines

    def weights_h(self) -> str:
        """The header of the constant tables."""
        declared = [f"extern const {table.c_type} {table.name}[{table.values.size}];" for table in self.tables.values()]
        return "\n".join(
            ["#ifndef LL_WEIGHTS_H", "#define LL_WEIGHTS_H", "", "#include <stdint.h>", "", *declared, "", "#endif", ""]
        )

    def weights_c(self) -> str:
        """The constant tables."""
        lines = ['#include "weights.h"', ""]
        for table in self.tables.values():
            numbers = ", ".join(_literal(value, table.c_type) for value in table.values.ravel().tolist())
            lines += [f"const {table.c_type} {table.name}[{table.values.size}] = {{", fill(numbers, 118,
                      initial_indent="    ", subsequent_indent="    ", break_long_words=False), "};", ""]  # fmt: skip
        return "\n".join(lines)


class InferenceCalls:
    """The calls of a plan, in running order."""

    def __init__(self, plan: Plan, declarations: Declarations, scratch: str = "ll_scratch") -> None:
        """Where no gap of the arena holds a kernel's working memory, ``scratch`` is its address."""
        self.plan, self.declarations, self.scratch = plan, declarations, scratch
        self.calls: list[tuple[str, str]] = []
        """For each step the tensor it makes, and the C statement."""
        for index, step in enumerate(plan.steps):
            if not step.is_alias:
                statement = self._read(step) if plan.is_read(step) else self._call(index, step)
                self.calls.append((step.output, statement))

    def _address(self, name: str, first: int = 0) -> str:
        return f"ll_arena + {self.plan.offsets[name] + first}"

    def _output(self, step: Step) -> str:
        whole = self.plan.qgraph.tensors[step.output].shape
        return self._address(
            step.output, 0 if step.paste is None else first_byte(step.paste.top, step.paste.left, whole)
        )

    def _read(self, step: Step) -> str:
        assert isinstance(step.op, Crop)
        rows, columns, _ = self.plan.qgraph.tensors[step.op.name].shape
        return f"ll_model_read({step.op.top}, {step.op.left}, {rows}, {columns}, {self._output(step)});"

    def _call(self, index: int, step: Step) -> str:
        tensors = self.plan.qgraph.tensors
        in_place = step.in_place and step.base is None  # pasted into a map, its result lies on no input
        call = lower(step.op, tensors, symbol=f"op{index}", fused_add=step.fused_add, in_place=in_place)
        comment = f"{step.op.source or step.op.name}: {type(step.op).__name__} -> {'x'.join(map(str, tensors[step.output].shape))}"
        name = self.declarations.struct(call.params_type, call.params, call.constants, comment)
        inputs = [self._address(each) for each in step.inputs]
        if isinstance(step.op, Crop):
            inputs = [
                self._address(step.inputs[0], first_byte(step.op.top, step.op.left, tensors[step.inputs[0]].shape))
            ]
        scratch = self.scratch if call.scratch_bytes else "NULL"
        if step.scratch_offset is not None:
            scratch = f"ll_arena + {step.scratch_offset}"
        return f"{call.function}(&{name}, {', '.join([*inputs, self._output(step), scratch])});"


def _literal(value: int, c_type: str) -> str:
    if value == -(2**31):
        return "INT32_MIN"  # -2147483648 is no int literal in C
    return f"{value}u" if c_type.startswith("u") else str(value)
