"""A placed program carried out on real bytes: what an error in a plan would do on the device, it does here.

Every byte starts as 0xA5, and turns into it again where a buffer's life ends, so a buffer that is moved, shared or dropped too early gives
other trained bytes than the interpreter.
"""

from collections.abc import Iterator, MutableMapping

import numpy as np

from lilliput.mcu.training import interpreter
from lilliput.mcu.training.planning import Placement

POISON = 0xA5
DTYPES = {"activation": np.int8, "gradient": np.int16, "sum": np.int32, "parameter gradient": np.int32}


class Arena(MutableMapping[str, np.ndarray]):
    """Buffers by name, each a view of one array of bytes."""

    def __init__(self, placement: Placement) -> None:
        self.placement = placement
        self.bytes = np.full(placement.arena_bytes, POISON, dtype=np.uint8)

    def _span(self, name: str) -> np.ndarray:
        first = self.placement.offsets[name]
        return self.bytes[first : first + self.placement.program.buffers[name].bytes]

    def __setitem__(self, name: str, values: np.ndarray) -> None:
        buffer = self.placement.program.buffers[name]
        if buffer.role == "mask":
            self._span(name)[:] = np.packbits(values.reshape(-1), bitorder="little")
        else:
            self._span(name)[:] = values.reshape(-1).astype(DTYPES[buffer.role]).view(np.uint8)

    def __getitem__(self, name: str) -> np.ndarray:
        buffer = self.placement.program.buffers[name]
        if buffer.role == "mask":
            bits = np.unpackbits(self._span(name), count=buffer.elements, bitorder="little")
            return bits.astype(bool).reshape(buffer.shape)
        values = self._span(name).copy().view(DTYPES[buffer.role]).reshape(buffer.shape)
        return values.astype(np.int64) if buffer.role in ("sum", "parameter gradient") else values

    def __delitem__(self, name: str) -> None:
        self._span(name)[:] = POISON

    def __iter__(self) -> Iterator[str]:
        return iter(self.placement.program.buffers)

    def __len__(self) -> int:
        return len(self.placement.program.buffers)


def train_step(placement: Placement, state: interpreter.State, codes: np.ndarray, label: int, rate: int) -> int:
    """One step in the arena; the loss in Q16."""
    program = placement.program
    arena = Arena(placement)
    run = interpreter.Run(program, state, label, rate, values=arena)
    run.set(program.input, codes)
    over = {host: op.outputs[0] for op, host in zip(program.ops, placement.hosts, strict=True) if host is not None}
    for step, op in enumerate(program.ops):
        scratch = [block for block in placement.blocks if block.name.endswith("@scratch") and block.start == step]
        for block in scratch:  # used before the result is written, so nothing else may lie there
            first = placement.offsets[block.name]
            arena.bytes[first : first + block.size_bytes] = POISON
        interpreter.evaluate(op, run)
        for block in placement.blocks:
            if block.stop == step + 1 and block.name in program.buffers and block.name not in over:
                del arena[block.name]
    return run.loss_q16
