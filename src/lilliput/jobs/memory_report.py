"""What a report says of a plan and of the receipt of its run: whether it fits, and where the bytes go."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lilliput.evidence import Figure, Table, Text, figures

if TYPE_CHECKING:
    from lilliput.mcu import Plan, Receipt

NOT_TIME = "Instructions are those of the emulated processor. They are not cycles and not time: the emulator models no pipeline."
NOT_EMULATED = Text(
    "No chip was emulated, so stack, flash and instructions are not known; the plan's own figures follow."
)


def verdict(receipt: Receipt | None, sram_bytes: int, flash_bytes: int, mismatching_bytes: int) -> tuple[str, bool]:
    """One line, and whether it is the good one: does it fit, and does the C code compute what it should?"""
    same = mismatching_bytes == 0
    bytes_said = (
        "every output byte as the integer interpreter says" if same else f"{mismatching_bytes:,} output bytes differ"
    )
    if receipt is None:
        return f"ran on this computer only (board=host): {bytes_said}; no chip was emulated", same
    assert receipt.sram_bytes is not None
    assert receipt.flash_bytes is not None
    fits = receipt.sram_bytes <= sram_bytes and receipt.flash_bytes <= flash_bytes
    words = "fits" if fits else "does not fit"
    return (
        f"{words}: {receipt.sram_bytes:,} of {sram_bytes:,} bytes of SRAM, {receipt.flash_bytes:,} of {flash_bytes:,} bytes of flash; "
        f"{bytes_said}",
        fits and same,
    )


def sram_table(plan: Plan, receipt: Receipt) -> Table:
    """All memory in use, by what it is for; the receipt is of a board."""
    static = (receipt.bss_bytes or 0) - plan.arena_bytes - plan.scratch_bytes
    image = "the image is streamed" if plan.streams_input else "input included"
    rows: list[list[Any]] = [
        [f"activations (arena, {image})", plan.arena_bytes, "planned; equal to the linked symbol"],
        ["scratch of the kernels", plan.scratch_bytes, "planned; equal to the linked symbol"],
        ["variables and alignment", static, "linked image"],
        ["stack", receipt.stack_bytes, f"painted, high water over {receipt.inferences} inferences"],
        ["total", receipt.sram_bytes, "sum"],
    ]
    return Table("Where the SRAM goes", ["part", "bytes", "how"], rows)


def flash_figure(receipt: Receipt, flash_bytes: int) -> Figure:
    """The linked image by origin; the receipt is of a board."""
    drawing = figures.flash_breakdown(receipt.flash_parts, budget_bytes=flash_bytes)
    parts = ", ".join(f"{name} {size:,}" for name, size in receipt.flash_parts.items())
    return Figure(drawing, "Flash by origin", f"Bytes of flash: {parts}", "From the symbols of the linked image.")


def short_name(path: str) -> str:
    """A module path without the words that every layer of the family shares; of a path with slashes the last two words."""
    if "/" in path:
        return "/".join(path.split("/")[-2:])
    return ".".join(word for word in path.split(".") if word not in ("blocks", "body", "conv", "act", "norm")) or path
