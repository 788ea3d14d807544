"""Write docs/ops.md from the rules in the code: which consumer knows which kind of node.

usage: python docs/generate.py
"""

from __future__ import annotations

from pathlib import Path

from lilliput.certify import SUPPORTED_OPS as BOUNDED_OPS
from lilliput.graph import Op
from lilliput.graph.aten import OPERATORS
from lilliput.graph.ops import RULES, no_macs
from lilliput.quantize import SUPPORTED_OPS

PAGE = Path(__file__).with_name("ops.md")


def page() -> str:
    """The text of docs/ops.md."""
    lines = [
        "# Operators, and who knows them",
        "",
        "This page is generated from the rules themselves (`python docs/generate.py`); a test says when it is stale.",
        "",
        f"The graph has {len(Op)} kinds of node. *run* is the reference interpreter, *MACs* says whether the kind counts"
        " multiply-accumulates (the others count none), *in place* whether live-memory analysis may let it write over its input,"
        " *int8* whether quantization lowers it; everything that quantization gives has a C kernel;"
        " *bounds* whether bound propagation has a rule: `mul` and `matmul` by a constant there.",
        "",
        "| kind | inputs | attributes | run | MACs | in place | int8 and C | bounds |",
        "|---|---|---|:-:|:-:|:-:|:-:|:-:|",
    ]
    for op in Op:
        rule = RULES[op]
        in_place = rule.is_elementwise or op is Op.CONV
        cells = [
            f"`{op}`",
            ", ".join(rule.inputs),
            ", ".join(rule.attrs) or "none",
            "yes",
            "yes" if rule.macs is not no_macs else "",
            ("depthwise" if op is Op.CONV else "yes") if in_place else "",
            "yes" if op in SUPPORTED_OPS else "",
            "yes" if op in BOUNDED_OPS else "",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    lines += [
        "",
        "## From PyTorch",
        "",
        f"`trace` knows {len(OPERATORS)} ATen operators (where no overload is given, all of them); in-place forms count as their plain"
        " ones. Anything else is refused by name, with the module it came from.",
        "",
        ", ".join(f"`{name}`" for name in sorted(OPERATORS)) + ".",
        "",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    PAGE.write_text(page())
