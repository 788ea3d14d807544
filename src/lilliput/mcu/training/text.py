"""A training program as text: one line an operation, for people and for tests."""

from __future__ import annotations

from lilliput.mcu.training.graph import Buffer, Op, Program, ScaleGradient


def to_text(program: Program) -> str:
    """All operations in running order with what they make; parameters first. Weights and factors are not listed."""
    lines = [
        f"training program {program.name}: {len(program.ops)} operations, {program.parameter_bytes:,} bytes trained"
    ]
    lines += [
        f"parameter {parameter.name}: {parameter.initial.dtype}[{parameter.initial.size}]"
        for parameter in program.parameters.values()
    ]
    lines.append(f"input {_buffer(program.buffers[program.input])}")
    lines += [_line(program, op) for op in program.ops]
    return "\n".join(lines)


def _line(program: Program, op: Op) -> str:
    arguments = ", ".join((*op.inputs, *op.uses))
    bits = f", bits={op.bits}" if isinstance(op, ScaleGradient) else ""
    made = [_buffer(program.buffers[name]) for name in op.outputs] + [f"{name} moved" for name in op.updates]
    return f"{op.kind}({arguments}{bits}) -> {'; '.join(made)}"


def _buffer(buffer: Buffer) -> str:
    kind = {"activation": "int8", "mask": "bit", "gradient": "int16"}.get(buffer.role, "int32")
    unit = f" unit={buffer.unit:.6g}" if buffer.unit != 1.0 else ""
    return f"{buffer.name}: {kind}[{', '.join(map(str, buffer.shape))}]{unit}"
