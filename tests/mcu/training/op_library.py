"""Every operation of some training programs as a C function of its own, in a shared library, to be held against the interpreter."""

from __future__ import annotations

import ctypes
import subprocess
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lilliput.mcu.boards import PORT
from lilliput.mcu.calls import Declarations
from lilliput.mcu.training import graph as t
from lilliput.mcu.training import xorshift
from lilliput.mcu.training.arithmetic import gradient_bits
from lilliput.mcu.training.in_place import hosts
from lilliput.mcu.training.interpreter import Run, State, evaluate
from lilliput.mcu.training.lowering import Parameters, TrainingCall, layer_struct, lower

KERNELS = Path(str(PORT)).parent / "nn"
WARNINGS = ("-std=c99", "-Wall", "-Wextra", "-Werror", "-fPIC", "-O0")
MARGIN, CANARY = 64, 0x5A
PARAMETER_WORDS = 4096
TYPES = {
    "activation": np.int8,
    "mask": np.uint8,
    "gradient": np.int16,
    "sum": np.int32,
    "parameter gradient": np.int32,
}


@dataclass(frozen=True, eq=False)
class Case:
    """One operation of one program."""

    label: str
    program: t.Program
    op: t.Op
    symbol: str
    call: TrainingCall
    first_word: dict[str, int]

    def is_in_place(self) -> bool:
        return bool(hosts(self.op, self.program))


def cases_of(label: str, program: t.Program, number: int) -> list[Case]:
    """All operations that have a training kernel."""
    first_word, word = {}, 0
    for name, parameter in program.parameters.items():
        first_word[name] = word
        word += -(-parameter.bytes // 4)
    assert word <= PARAMETER_WORDS
    return [
        Case(f"{label}: {op.name}", program, op, f"c{number}_{i}", lower(op, program, f"c{number}_{i}"), first_word)
        for i, op in enumerate(program.ops)
        if not isinstance(op, t.Infer)
    ]


def write_c(cases: list[Case]) -> str:
    """The cases' functions: ``void symbol(void **buffers, void *scratch, int32_t *exponents, uint32_t label, int32_t *loss)``."""
    declarations, layers, functions = Declarations(), [], []
    known: dict[tuple[int, str], str] = {}
    for case in cases:
        call, layer = case.call, case.call.layer
        struct = ""
        if layer is not None:
            key = (id(case.program), layer.name)
            if key not in known:
                known[key] = name = f"layer{len(known)}"
                text, tables = layer_struct(layer, case.program, Parameters(case.first_word), name)
                for table in tables:
                    text = text.replace(table.name, declarations.table(table))
                layers.append(f"static const ll_train_layer {name} = {text};")
            struct = known[key]
        params = struct
        if call.params != "@layer@":
            params = declarations.struct(
                call.params_type, call.params.replace("@layer@", struct), call.constants, case.label
            )
        places = [f"buffers[{i}]" if name is not None else "NULL" for i, name in enumerate(call.buffers)]
        exponents = [f"exponents[{i}]" for i in range(len(call.exponents))]
        others = ["loss" if each == "&loss" else each for each in call.others]
        arguments = ", ".join([f"&{params}", *places, "scratch", *exponents, *others])
        made = f"exponents[{len(call.exponents)}] = " if call.makes_exponent else ""
        functions += [
            f"void {case.symbol}(void **buffers, void *scratch, int32_t *exponents, uint32_t label, int32_t *loss) {{",
            "    (void)exponents, (void)label, (void)loss;",
            f"    {made}{call.function}({arguments});",
            "}",
        ]
    tables = [
        f"static const {x.c_type} {x.name}[] = {{{', '.join(_literal(v) for v in x.values.reshape(-1).tolist())}}};"
        for x in declarations.tables.values()
    ]
    head = ['#include "ll_train.h"', f"uint32_t ll_params[{PARAMETER_WORDS}];", "ll_train_state ll_state;"]
    return "\n".join([*head, *tables, *layers, *declarations.structs_c(), *functions, ""])


def _literal(value: int) -> str:
    return "INT32_MIN" if value == -(2**31) else str(value)


class OpLibrary:
    """The compiled cases."""

    def __init__(self, directory: Path, cases: list[Case]) -> None:
        (directory / "cases.c").write_text(write_c(cases))
        kernels = [str(path) for path in sorted(KERNELS.glob("ll_train*.c"))]
        path = directory / "ops.so"
        command = ["cc", *WARNINGS, "-shared", "-Wno-missing-prototypes", "-I", str(KERNELS), *kernels]
        done = subprocess.run([*command, str(directory / "cases.c"), "-o", str(path)], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        self.handle = ctypes.CDLL(str(path))
        self.params = (ctypes.c_uint32 * PARAMETER_WORDS).in_dll(self.handle, "ll_params")
        self.state = (ctypes.c_uint32 * 2).in_dll(self.handle, "ll_state")

    def check(self, case: Case, before: Run, *, in_place: bool = False) -> None:
        """Run the kernel and the interpreter on the same numbers: every output, exponent, master and random state is equal, and nothing
        else was written."""
        op, call, program = case.op, case.call, case.program
        expected = Run(program, before.state.copy(), before.label, before.rate, dict(before.values))
        expected.exponents = dict(before.exponents)
        evaluate(op, expected)

        self._load(case, before)
        buffers = {name: _guarded(program.buffers[name], before.values.get(name)) for name in call.buffers if name}
        if in_place:
            host = hosts(op, program)[0]
            buffers[op.outputs[0]] = buffers[host]
        kept = {name: buffer.copy() for name, buffer in buffers.items()}
        scratch = np.full(call.scratch_bytes + 2 * MARGIN, CANARY, dtype=np.uint8)
        places = (ctypes.c_void_p * len(call.buffers))(
            *(
                None if name is None else buffers[name].ctypes.data + _start(program.buffers[name])
                for name in call.buffers
            )
        )
        exponents = (ctypes.c_int32 * 4)(*(before.exponents[name] for name in call.exponents))
        loss = ctypes.c_int32(-1)
        place = ctypes.c_void_p(scratch.ctypes.data + MARGIN) if call.scratch_bytes else None
        getattr(self.handle, case.symbol)(places, place, exponents, ctypes.c_uint32(before.label), ctypes.byref(loss))

        for name in op.outputs:
            found = _read(program.buffers[name], buffers[name])
            wanted = np.asarray(expected.values[name]).reshape(-1)
            assert np.array_equal(found, wanted), f"{case.label}: {name}: {found[:8]} is not {wanted[:8]}"
        if call.makes_exponent is not None:
            assert exponents[len(call.exponents)] == expected.exponents[call.makes_exponent], f"{case.label}: exponent"
        if isinstance(op, t.Loss):
            assert loss.value == expected.loss_q16, case.label
        for name in program.parameters:
            assert np.array_equal(self._master(case, name), expected.state.masters[name]), f"{case.label}: {name}"
        assert self.state[1] == expected.state.random, f"{case.label}: random state"
        for name, buffer in buffers.items():
            size, start = program.buffers[name].bytes, _start(program.buffers[name])
            written = name in op.outputs or buffer is buffers.get(op.outputs[0] if op.outputs else None)
            after = buffer.copy()
            if written:
                after[start : start + size] = kept[name][start : start + size]
            assert np.array_equal(after, kept[name]), f"{case.label}: wrote outside its outputs, at {name}"
        scratch[MARGIN : MARGIN + call.scratch_bytes] = CANARY
        assert (scratch == CANARY).all(), f"{case.label}: wrote outside its scratch"

    def _load(self, case: Case, before: Run) -> None:
        ctypes.memset(self.params, CANARY, ctypes.sizeof(self.params))
        for name, master in before.state.masters.items():
            ctypes.memmove(ctypes.byref(self.params, 4 * case.first_word[name]), master.tobytes(), master.nbytes)
        self.state[0], self.state[1] = before.rate, before.state.random

    def _master(self, case: Case, name: str) -> np.ndarray:
        initial = case.program.parameters[name].initial
        raw = ctypes.string_at(ctypes.byref(self.params, 4 * case.first_word[name]), initial.nbytes)
        return np.frombuffer(raw, dtype=initial.dtype)


def _start(buffer: t.Buffer) -> int:
    """Codes and masks at an odd address, numbers of more bytes at a word."""
    return MARGIN + (1 if buffer.role in ("activation", "mask") else 0)


def _guarded(buffer: t.Buffer, values: np.ndarray | None) -> np.ndarray:
    held = np.full(buffer.bytes + 2 * MARGIN + 8, CANARY, dtype=np.uint8)
    if values is not None:
        flat = values.reshape(-1)
        packed = np.packbits(flat, bitorder="little") if buffer.role == "mask" else flat.astype(TYPES[buffer.role])
        raw = packed.view(np.uint8)
        held[_start(buffer) : _start(buffer) + len(raw)] = raw
    return held


def _read(buffer: t.Buffer, held: np.ndarray) -> np.ndarray:
    raw = held[_start(buffer) : _start(buffer) + buffer.bytes]
    if buffer.role == "mask":
        bits = np.unpackbits(raw, bitorder="little")
        assert not bits[buffer.elements :].any(), f"{buffer.name}: bits beyond the last are set"
        return bits[: buffer.elements].astype(bool)
    return raw.copy().view(TYPES[buffer.role])


def random_run(case: Case, rng: np.random.Generator, regime: str) -> Run:
    """Numbers for all that the operation reads, in the ranges that the compiler promises."""
    program, op = case.program, case.op
    masters = {}
    for name, parameter in program.parameters.items():
        if parameter.role == "bias":
            masters[name] = rng.integers(-(2**20), 2**20, parameter.initial.size).astype(np.int32)
        else:
            limit = 127 * 256 if parameter.initial.dtype == np.int16 else 127
            masters[name] = rng.integers(-limit, limit + 1, parameter.initial.size).astype(parameter.initial.dtype)
    state = State(masters, int(rng.integers(1, 2**32)) if regime != "zeros" else xorshift.SEED)
    rate = {"zeros": 0, "small": 2**15, "large": 12345, "growing": 2**15}[regime]
    classes = program.buffers[program.logits].elements
    run = Run(program, state, int(rng.integers(classes)), rate)
    for name in op.inputs:
        buffer = program.buffers[name]
        run.values[name] = _numbers(buffer, op, rng, regime).reshape(buffer.shape)
        if buffer.has_exponent:
            # so that steps come out in the masters' range, at times beyond it
            run.exponents[name] = int(rng.integers(-40, -10))
    return run


def _numbers(buffer: t.Buffer, op: t.Op, rng: np.random.Generator, regime: str) -> np.ndarray:
    count = buffer.elements
    if buffer.role == "activation":
        return rng.integers(-128, 128, count).astype(np.int8)
    if buffer.role == "mask":
        return rng.random(count) < 0.7
    if buffer.role == "sum":
        spread = {"zeros": 1, "small": 2**10, "large": 2**30, "growing": 2**20}[regime]
        return rng.integers(-spread, spread, count)
    bits, dtype = (31, np.int64) if buffer.role == "parameter gradient" else (15, np.int16)
    if buffer.role == "gradient" and isinstance(op, (t.ConvInputGradient, t.ConvWeightGradient, t.ConvWeightStep)):
        bits = gradient_bits(op.layer.products)  # all that a layer's own gradient ever has
    return _gradient(count, 2**bits - 1, rng, regime).astype(dtype)


def _gradient(count: int, largest: int, rng: np.random.Generator, regime: str) -> np.ndarray:
    if regime == "zeros":
        return np.zeros(count)
    if regime == "large":
        return rng.choice([-largest, largest, 0], count)
    if regime == "small":
        return rng.integers(-3, 4, count)
    # ever larger, so that what has been written must be shifted again and again
    return np.rint(rng.choice([-1, 1], count) * largest ** (np.arange(count) / max(count - 1, 1)))
