"""From a compiled training step to a self-contained C99 project: predict, train on one sample, save and restore what was learnt.

The folder is laid out as inference's (``lilliput.mcu.codegen``): it builds with GCC or Clang and ``make``, without Python. One arena holds
the frozen prefix and then the training program; the trained tensors lie apart, in the form in which they are saved.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from textwrap import dedent, wrap
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Int8, Int64

from lilliput import __version__
from lilliput.errors import DataError
from lilliput.mcu.calls import Declarations, InferenceCalls
from lilliput.mcu.kernel_call import ConstantTable
from lilliput.mcu.lowering import lower as lower_inference
from lilliput.mcu.project import default_board, new_project, write_text
from lilliput.mcu.training import graph as t
from lilliput.mcu.training.arithmetic import MASTER_FRACTION_BITS, RATE_ONE
from lilliput.mcu.training.footprint import arena_bytes, prefix_scratch_offset
from lilliput.mcu.training.forward import logit_scale
from lilliput.mcu.training.in_place import is_alias
from lilliput.mcu.training.lowering import Parameters, TrainingCall, layer_struct, lower
from lilliput.mcu.training.parameter_image import (
    HEADER_WORDS,
    MAGIC,
    VERSION,
    ImageLayout,
    image_layout,
)
from lilliput.mcu.training.samples import results, samples

if TYPE_CHECKING:
    from lilliput.mcu.training.firmware import TrainFirmware
    from lilliput.mcu.training.train_step import TrainStep

LAYOUT_FILE = "params.json"
_C_TYPES = {
    "activation": "int8_t",
    "mask": "uint8_t",
    "gradient": "int16_t",
    "sum": "int32_t",
    "parameter gradient": "int32_t",
}


def emit_c(
    step: TrainStep,
    directory: str | os.PathLike[str],
    target: str = "cortex-m7",
    x: Int8[np.ndarray, "n ..."] | None = None,
    y: Int64[np.ndarray, " n"] | None = None,
) -> TrainFirmware:
    """Write the C project of a training step.

    Args:
        step: compiled.
        directory: made by this call; it must not exist yet, or be empty.
        target: ``cortex-m4``, ``cortex-m7``, or a board's name: what the project's own ``make`` builds for. The sources are the same for
            every target.
        x: int8 samples that go along as the project's self-test: trained on, then predicted; 4 seeded ones if None.
        y: their labels.
    Raises:
        ConfigError: the directory holds something, or the target is unknown.
        DataError: samples without labels, or of another shape than the input.
        UnsupportedOpError: no kernel for an operation.
    """
    from lilliput.mcu.training.firmware import TrainFirmware

    directory = Path(directory)
    board = default_board(target)
    limits = {"sram_bytes": step.sram_bytes_limit, "flash_bytes": step.flash_bytes_limit}
    with new_project(directory, board, trains=True, **limits) as work:
        x, y = _vectors(step, x, y)
        log = step.simulate(x, y)
        code = _Code(step)
        write_text(work / "model.h", _model_h(code))
        write_text(work / "model.c", _model_c(code))
        write_text(work / "weights.h", code.declarations.weights_h())
        write_text(work / "weights.c", code.declarations.weights_c())
        write_text(work / LAYOUT_FILE, json.dumps(code.layout.to_json(), indent=1) + "\n")
        (work / "vectors" / "input.bin").write_bytes(samples(x, y) + samples(x, None))
        expected = results(log.losses_q16, log.predictions, None, step.num_classes)
        logits = step.logits(x, log.state)
        expected += results(None, logits.argmax(axis=1), logits, step.num_classes)
        (work / "vectors" / "expected.bin").write_bytes(expected)
        write_text(work / "README.md", _readme(code, board, len(x)))
    return TrainFirmware(directory)


def _vectors(step: TrainStep, x: np.ndarray | None, y: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    shape = step.qgraph.tensors[step.qgraph.input].shape
    if (x is None) != (y is None):
        raise DataError("the self-test's samples come with labels or not at all: give both x and y, or neither")
    if x is None or y is None:
        x = np.random.default_rng(0).integers(-128, 128, (4, *shape), dtype=np.int8)
        y = np.arange(4, dtype=np.int64) % step.num_classes
    if x.dtype != np.int8 or x.shape[1:] != shape or len(x) == 0:
        raise DataError(
            f"samples are {x.dtype}{list(x.shape)}; must be int8[n, {', '.join(map(str, shape))}] with n >= 1"
        )
    return x, y


class _Code:
    """The statements of one step, and what they share."""

    def __init__(self, step: TrainStep) -> None:
        self.step, self.program = step, step.program
        self.layout: ImageLayout = image_layout(step.program, None if step.prefix is None else step.prefix.whole)
        self.declarations = Declarations()
        self.layers: dict[str, tuple[str, str, str]] = {}
        """By layer: name of its struct, initializer, comment."""
        scratch = f"ll_arena + {prefix_scratch_offset(step)}"
        prefix = None if step.prefix is None else InferenceCalls(step.prefix, self.declarations, scratch)
        self.prefix = [] if prefix is None else prefix.calls
        self.forward: list[tuple[str, str]] = []
        self.backward: list[tuple[str, str]] = []
        self.exponents: dict[str, str] = {}
        """C variable of each gradient's exponent."""
        half = self.forward
        for index, op in enumerate(self.program.ops):
            if isinstance(op, t.Loss):
                half = self.backward
            if not is_alias(op):
                half.append((op.name, self._statement(op, f"t{index}")))

    @property
    def arena_bytes(self) -> int:
        return arena_bytes(self.step)

    def address(self, buffer: str) -> str:
        """Where a buffer of the program lies, with its type."""
        place = f"ll_arena + {self.step.placement.offsets[buffer]}"
        c_type = _C_TYPES[self.program.buffers[buffer].role]
        return place if c_type == "int8_t" else f"({c_type} *)({place})"

    def _statement(self, op: t.Op, symbol: str) -> str:
        if isinstance(op, t.Infer):
            return self._inference(op, symbol)
        call = lower(op, self.program, symbol)
        arguments = [f"&{self._params(op, call, symbol)}"]
        arguments += ["NULL" if name is None else self.address(name) for name in call.buffers]
        arguments += [self._scratch(op, call.scratch_bytes), *(self.exponents[name] for name in call.exponents)]
        text = f"{call.function}({', '.join([*arguments, *call.others])});"
        if call.makes_exponent is None:
            return text
        variable = self.exponents[call.makes_exponent] = f"e{len(self.exponents)}"
        return f"const int32_t {variable} = {text}"

    def _params(self, op: t.Op, call: TrainingCall, symbol: str) -> str:
        layer = "" if call.layer is None else self._layer(call.layer, symbol)
        if call.params == "@layer@":
            return layer
        module = "" if call.layer is None else f"{call.layer.source or call.layer.name}: "
        comment = f"{module}{op.kind} {op.name}"
        return self.declarations.struct(
            call.params_type, call.params.replace("@layer@", layer), call.constants, comment
        )

    def _layer(self, layer: t.Layer, symbol: str) -> str:
        if layer.name not in self.layers:
            name = f"layer{len(self.layers)}"
            initializer, tables = layer_struct(layer, self.program, Parameters(self.layout.first_word), name)
            for table in tables:
                kept = self.declarations.table(table)
                initializer = initializer.replace(table.name, kept)
            shape = "x".join(map(str, layer.output_shape))
            self.layers[layer.name] = name, initializer, f"{layer.source or layer.name}: {layer.name} -> {shape}"
        return self.layers[layer.name][0]

    def _inference(self, op: t.Infer, symbol: str) -> str:
        tensors, placement = self.program.tensors, self.step.placement
        host = placement.hosts[self.program.ops.index(op)]
        call = lower_inference(op.qop, tensors, symbol=symbol, in_place=host is not None)
        comment = (
            f"{op.qop.source or op.name}: {type(op.qop).__name__} -> {'x'.join(map(str, tensors[op.qop.name].shape))}"
        )
        name = self.declarations.struct(call.params_type, call.params, call.constants, comment)
        arguments = [*(self.address(each) for each in (*op.inputs, *op.outputs))]
        return f"{call.function}(&{name}, {', '.join(arguments)}, {self._scratch(op, call.scratch_bytes)});"

    def _scratch(self, op: t.Op, size: int) -> str:
        offset = self.step.placement.scratch_offset(op)
        assert (offset is not None) == (size > 0), f"{op.name}: {size} bytes of scratch at {offset}"
        return "NULL" if offset is None else f"ll_arena + {offset}"

    def start(self) -> list[str]:
        """Statements that put the start into the trained tensors."""
        lines = []
        for index, parameter in enumerate(self.program.parameters.values()):
            values = parameter.initial.reshape(-1)
            word = self.layout.first_word[parameter.name]
            if parameter.initial.dtype == np.int16:
                codes = values >> MASTER_FRACTION_BITS
                assert (codes << MASTER_FRACTION_BITS == values).all(), (
                    f"{parameter.name} does not start on whole codes"
                )
                table = self.declarations.table(ConstantTable(f"start{index}", "int8_t", codes.astype(np.int8)))
                lines.append(f"ll_train_start_q7_8((int16_t *)(ll_params + {word}), {table}, {values.size});")
            else:
                table = self.declarations.table(ConstantTable(f"start{index}", f"{values.dtype}_t", values))
                lines.append(f"memcpy(ll_params + {word}, {table}, {values.nbytes});")
        return lines


def _model_h(code: _Code) -> str:
    step = code.step
    graph = step.qgraph
    source = graph.tensors[graph.input]
    head = next(op.layer for op in step.program.ops if isinstance(op, t.ConvSum))
    return dedent(f"""\
        /* {graph.name}: an int8 network that learns, generated by Lilliput {__version__}.
         *
         * Call ll_model_predict, or ll_model_train_step with a label, once a sample. There is nothing to set up. Real input value =
         * scale * (code - zero point).
         */
        #ifndef LL_MODEL_H
        #define LL_MODEL_H

        #include <stdint.h>

        #define LL_MODEL_INPUT_BYTES {source.bytes}u /* {" x ".join(map(str, source.shape))} */
        #define LL_MODEL_INPUT_SCALE {source.scale!r}
        #define LL_MODEL_INPUT_ZERO_POINT ({source.zero_point})
        #define LL_MODEL_CLASSES {step.num_classes}u
        #define LL_MODEL_LOGIT_SCALE {logit_scale(head)!r} /* nats that one unit of a logit stands for */

        #define LL_MODEL_ARENA_BYTES {code.arena_bytes}u
        #define LL_MODEL_PARAMS_BYTES {code.layout.size_bytes}u /* trained tensors, as they are saved */
        #define LL_MODEL_STACK_BYTES {step.stack_bytes}u /* what the linker script sets aside; see README.md */
        #define LL_MODEL_RATE_ONE {RATE_ONE}u

        extern int8_t ll_arena[];
        {_input_h(code)}
        /* The class of a sample. */
        uint32_t ll_model_predict(const int8_t *x);
        /* Of the last ll_model_predict, until the next call. */
        const int32_t *ll_model_logits(void);
        /* One step of gradient descent on one sample. The loss before the step, in nats times 2^16; -1 and no step for a label that is no
         * class. */
        int32_t ll_model_train_step(const int8_t *x, uint32_t label);
        /* What the last predict or train step took the sample for, before it learnt from it. */
        uint32_t ll_model_predicted(void);
        /* Factor of the learning rate, 0 to LL_MODEL_RATE_ONE (as it begins): for warm-up and decay. */
        void ll_model_set_rate(uint32_t q15);

        /* All that was learnt, LL_MODEL_PARAMS_BYTES to write to flash; valid until the next step. */
        uint8_t *ll_model_get_params(void);
        /* Go on from a saved image, which may lie in flash. 0 and nothing changes if it is damaged or of another model. An image may
         * also be received into the place that ll_model_get_params gives and passed from there; if it is refused, the model is as at the
         * start. */
        int ll_model_set_params(const uint8_t *image);
        /* Forget all that was learnt. */
        void ll_model_reset(void);

        #endif
        """)


def _input_h(code: _Code) -> str:
    prefix = code.step.prefix
    if prefix is not None and prefix.streams_input:
        _, width, channels = prefix.qgraph.tensors[prefix.qgraph.input].shape
        lines: tuple[str, ...] = (
            "#define LL_MODEL_STREAMS_INPUT 1",
            f"#define LL_MODEL_INPUT_WIDTH {width}u",
            f"#define LL_MODEL_INPUT_CHANNELS {channels}u",
            "/* The image is never in memory as a whole: x is not read (NULL will do), parts of the image are asked for.",
            " * Yours: copy a part of the image, its rows one after the other without gaps, to where the model wants it. */",
            "void ll_model_read(uint32_t top, uint32_t left, uint32_t rows, uint32_t columns, int8_t *to);",
        )
    else:
        lines = (
            "/* Where the model wants a sample: x may be this place, else it is copied there. Part of the arena: fill it for each call. */",
            "int8_t *ll_model_input(void);",
        )
    return "\n        ".join(lines)


def _model_c(code: _Code) -> str:
    program, layout = code.program, code.layout
    starts = code.start()
    layers = []
    for name, initializer, comment in code.layers.values():
        layers += ["", f"/* {comment} */", *_wrapped(f"static const ll_train_layer {name} = {initializer};")]
    lines = [
        '#include "model.h"',
        "",
        "#include <string.h>",
        "",
        '#include "nn/ll_nn.h"',
        '#include "nn/ll_train.h"',
        '#include "weights.h"',
        "",
        "int8_t ll_arena[LL_MODEL_ARENA_BYTES] __attribute__((aligned(8)));",
        "/* Magic, version, fingerprint, bytes, random state; trained tensors; checksum. Zeros until the first call. */",
        "static uint32_t ll_params[LL_MODEL_PARAMS_BYTES / 4];",
        f"static ll_train_state ll_state = {{{RATE_ONE}, 0}};",
        "static uint32_t ll_predicted;",
        *layers,
        *code.declarations.structs_c(),
        "",
        "void ll_model_reset(void) {",
        *(f"    {line}" for line in starts),
        f"    ll_params[0] = {MAGIC:#010x}u;",
        f"    ll_state.random = {code.step.start().random}u;",
        "}",
        "",
        *_begin(code),
        "",
        *_body("static void ll_forward(void) {", code.forward),
        "    ll_predicted = 0;",
        f"    const int32_t *logits = {code.address(program.logits)};",
        "    for (uint32_t c = 1; c < LL_MODEL_CLASSES; c++)",
        "        if (logits[c] > logits[ll_predicted]) ll_predicted = c;",
        "}",
        "",
        "uint32_t ll_model_predict(const int8_t *x) {",
        "    ll_begin(x);",
        "    ll_forward();",
        "    return ll_predicted;",
        "}",
        "",
        f"const int32_t *ll_model_logits(void) {{ return {code.address(program.logits)}; }}",
        "",
        "uint32_t ll_model_predicted(void) { return ll_predicted; }",
        "",
        *_body("static int32_t ll_backward(uint32_t label) {\n    int32_t loss;", code.backward),
        "    return loss;",
        "}",
        "",
        "int32_t ll_model_train_step(const int8_t *x, uint32_t label) {",
        "    if (label >= LL_MODEL_CLASSES) return -1;",
        "    ll_begin(x);",
        "    ll_forward();",
        "    return ll_backward(label);",
        "}",
        "",
        "void ll_model_set_rate(uint32_t q15) { ll_state.rate = q15 < LL_MODEL_RATE_ONE ? q15 : LL_MODEL_RATE_ONE; }",
        "",
        "uint8_t *ll_model_get_params(void) {",
        f"    if (ll_params[0] != {MAGIC:#010x}u) ll_model_reset();",
        f"    ll_params[1] = {VERSION}u;",
        f"    ll_params[2] = {layout.fingerprint:#010x}u;",
        f"    ll_params[3] = {4 * layout.payload_words}u;",
        "    ll_params[4] = ll_state.random;",
        f"    ll_params[{layout.words - 1}] = ll_train_crc32((const uint8_t *)ll_params, LL_MODEL_PARAMS_BYTES - 4u);",
        "    return (uint8_t *)ll_params;",
        "}",
        "",
        "static int ll_is_own(const uint8_t *image) {",
        f"    uint32_t header[{HEADER_WORDS}], checksum;",
        "    memcpy(header, image, sizeof header);",
        "    memcpy(&checksum, image + LL_MODEL_PARAMS_BYTES - 4u, 4);",
        f"    if (header[0] != {MAGIC:#010x}u || header[1] != {VERSION}u || header[2] != {layout.fingerprint:#010x}u) return 0;",
        f"    if (header[3] != {4 * layout.payload_words}u || header[4] == 0) return 0;",
        "    return ll_train_crc32(image, LL_MODEL_PARAMS_BYTES - 4u) == checksum;",
        "}",
        "",
        "int ll_model_set_params(const uint8_t *image) {",
        "    const int is_own = ll_is_own(image);",
        "    if (image != (const uint8_t *)ll_params) {",
        "        if (is_own) memcpy(ll_params, image, LL_MODEL_PARAMS_BYTES);",
        "    } else if (!is_own) {",
        "        ll_model_reset();",
        "    }",
        "    if (is_own) ll_state.random = ll_params[4];",
        "    return is_own;",
        "}",
        "",
    ]
    return "\n".join(lines)


def _begin(code: _Code) -> list[str]:
    """The frozen prefix, up to the program's input in its place."""
    step, program = code.step, code.program
    prefix = step.prefix
    place = f"ll_arena + {step.placement.offsets[program.input]}"
    is_resident = prefix is None or not prefix.streams_input
    lines = []
    if is_resident:
        source = place if prefix is None else f"ll_arena + {prefix.offsets[prefix.qgraph.input]}"
        lines += [f"int8_t *ll_model_input(void) {{ return {source}; }}", ""]
    lines += [
        "static void ll_begin(const int8_t *x) {",
        f"    if (ll_params[0] != {MAGIC:#010x}u) ll_model_reset();",
        "    if (x != ll_model_input()) memmove(ll_model_input(), x, LL_MODEL_INPUT_BYTES);"
        if is_resident
        else "    (void)x;",
    ]
    for name, statement in code.prefix:
        lines += [f"    {statement}", f"    LL_STEP({json.dumps(name)});"]
    if prefix is not None:
        made = f"ll_arena + {prefix.offsets[prefix.qgraph.outputs[0]]}"
        if made != place:
            size = program.buffers[program.input].bytes
            lines += [f"    memmove({place}, {made}, {size});", '    LL_STEP("cut");']
    return [*lines, "}"]


def _body(head: str, calls: list[tuple[str, str]]) -> list[str]:
    lines = [head]
    for name, statement in calls:
        lines += [f"    {statement}", f"    LL_STEP({json.dumps(name)});"]
    return lines


def _wrapped(text: str) -> list[str]:
    return wrap(text, 118, subsequent_indent="    ", break_long_words=False)


def _readme(code: _Code, board: str, count: int) -> str:
    step = code.step
    source = step.qgraph.tensors[step.qgraph.input]
    limits = []
    if step.sram_bytes_limit is not None:
        limits.append(f"{step.sram_bytes_limit:,} bytes of SRAM")
    if step.flash_bytes_limit is not None:
        limits.append(f"{step.flash_bytes_limit:,} bytes of flash")
    enforced = f"The linker scripts allow {' and '.join(limits)} and refuse an image that needs more." if limits else ""
    trained = [
        f"| `{name}` | {parameter.initial.size:,} | {parameter.initial.dtype} | {parameter.bytes:,} |"
        for name, parameter in step.program.parameters.items()
    ]
    return "\n".join(
        [
            f"# {step.qgraph.name}: int8 firmware that learns",
            "",
            f"Generated by Lilliput {__version__}. C99, no heap, no operating system, no library beyond the compiler's own.",
            "",
            "| what | bytes |",
            "|---|---:|",
            f"| arena (activations, gradients, clamp masks, working memory) | {code.arena_bytes:,} |",
            f"| trained tensors, as they are saved | {code.layout.size_bytes:,} |",
            f"| stack set aside | {step.stack_bytes:,} |",
            "",
            enforced,
            "",
            "```sh",
            f"make            # arm-none-eabi-gcc, for {board}",
            f"make run        # in QEMU: trains on {count} samples, predicts them, compares all results with vectors/expected.bin",
            "make host-run   # the same on this computer",
            "```",
            "",
            "## In your own program",
            "",
            "Compile `model.c`, `weights.c` and `nn/*.c`; include `model.h`:",
            "",
            "```c",
            "if (flash_holds_an_image) ll_model_set_params(flash); /* refuses what is damaged or of another model */",
            "for (;;) {",
            f"    fill(ll_model_input()); /* LL_MODEL_INPUT_BYTES codes, {' x '.join(map(str, source.shape))} */",
            "    if (label_is_known) ll_model_train_step(ll_model_input(), label);",
            "    else show(ll_model_predict(ll_model_input()));",
            "}",
            "write_flash(ll_model_get_params(), LL_MODEL_PARAMS_BYTES);",
            "```",
            "",
            "| trained | numbers | type | bytes |",
            "|---|---:|---|---:|",
            *trained,
            "",
            "| folder | what |",
            "|---|---|",
            "| `model.c`, `model.h` | the calls, the arena, the sizes |",
            "| `weights.c` | constant tables; they stay in flash |",
            "| `nn/` | the kernels: portable C with paths for the DSP instructions of Cortex-M4 and M7 |",
            "| `port/` | start-up code, stack painting, semihosting; its `main.c` learns from a stream of labelled samples |",
            "| `link/` | one linker script a board |",
            "| `vectors/` | samples and the results of the integer simulation |",
            f"| `{LAYOUT_FILE}` | where each trained tensor lies in a saved image |",
            "",
        ]
    )
