"""What one structure costs: by the authors' counters, as the built network is counted, and on a chip at int8."""

from __future__ import annotations

from lilliput.design.block import squeezed_width
from lilliput.design.geometry import Geometry, Patches, geometry
from lilliput.design.memory import (
    Facts,
    Rules,
    block_forms,
    form_bytes,
    in_place_claims,
    peak_bytes,
    stem_form,
    tail_forms,
)
from lilliput.design.structure import Structure
from lilliput.design.terms import (
    Counter,
    Quantity,
    block_terms,
    classifier_terms,
    head_terms,
    stem_terms,
    total,
)
from lilliput.errors import ConfigError
from lilliput.evidence import Cost


def exact_cost(structure: Structure, image_size: int, num_classes: int) -> Cost:
    """What ``lilliput.graph`` counts of the built network, from the structure alone.

    Multiply-accumulates of convolutions and classifier; trainable parameters; ``flash_bytes`` is these at 8 bits; ``sram_bytes`` the peak
    of live activations at 8 bits, operations in place where the graph allows it.

    Raises:
        ConfigError: sizes below 1.
    """
    maps = _checked_geometry(structure, image_size, num_classes, None)
    params = _count(structure, maps, "params", "exact", num_classes)
    macs = _count(structure, maps, "macs", "exact", num_classes)
    sram_bytes = _memory(structure, image_size, maps, num_classes, "graph", "resident")
    return Cost(macs=macs, params=params, flash_bytes=params, sram_bytes=sram_bytes)


def chip_cost(
    structure: Structure,
    image_size: int,
    num_classes: int,
    patches: Patches | None = None,
    image: str = "resident",
) -> Cost:
    """What the structure needs on a microcontroller at int8: bytes of constants, and of activations with the kernels' working memory.

    Code, stack and variables come on top. Multiply-accumulates of patches count their halos.

    Args:
        patches: run the first layers tile by tile.
        image: whether the whole input stays in memory while tiles are computed (``resident``), or comes in tile by tile (``stream``).
    Raises:
        ConfigError: sizes below 1, or patches that do not go with the structure.
    """
    maps = _checked_geometry(structure, image_size, num_classes, patches)
    return Cost(
        macs=_count(structure, maps, "macs", "exact", num_classes),
        params=_count(structure, maps, "params", "exact", num_classes),
        flash_bytes=_count(structure, maps, "flash_bytes", "exact", num_classes),
        sram_bytes=_memory(structure, image_size, maps, num_classes, "chip", image, patches),
    )


def reference_cost(structure: Structure, image_size: int) -> tuple[int, int]:
    """Multiply-accumulates and parameters as the authors' code counts them, classifier not counted."""
    maps = _geometry(structure, image_size, None)
    return (
        _count(structure, maps, "macs", "reference", 0),
        _count(structure, maps, "params", "reference", 0),
    )


def _checked_geometry(structure: Structure, image_size: int, num_classes: int, patches: Patches | None) -> Geometry:
    for name, value in (("num_classes", num_classes), ("image_size", image_size)):
        if value < 1:
            raise ConfigError(f"{name}={value}: must be at least 1")
    return _geometry(structure, image_size, patches)


def _geometry(structure: Structure, image_size: int, patches: Patches | None) -> Geometry:
    return geometry(
        tuple(block.kind for block in structure.blocks),
        image_size,
        structure.strides,
        structure.stem_kernel,
        tuple(block.kernel for block in structure.blocks),
        tuple(block.layers for block in structure.blocks),
        patches,
    )


def _count(structure: Structure, maps: Geometry, quantity: Quantity, counter: Counter, num_classes: int) -> int:
    taps = structure.channels * structure.stem_kernel**2
    result = total(stem_terms(quantity, counter, taps), {"out": structure.stem}, 0, [0, maps.stem_pixels])
    channels = structure.stem
    for block, each in zip(structure.blocks, maps.maps, strict=True):
        symbols = _symbols(channels, block.mid, block.out)
        for is_first, pixels in ((True, each.first_pixels), (False, each.other_pixels)):
            terms = block_terms(block.kind, quantity, counter, is_first=is_first, stride=block.stride)
            repeats = 1 if is_first else block.layers - 1
            # Pixels are already those of all repeats; what has no map is the same in each.
            result += total((t for t in terms if t.position is not None), symbols, block.kernel, pixels)
            result += repeats * total((t for t in terms if t.position is None), symbols, block.kernel, ())
        channels = block.out
    if structure.head:
        pair = {"in": channels, "out": structure.head}
        result += total(head_terms(quantity, counter), pair, 0, [0, maps.end_side**2])
        channels = structure.head
    return result + total(classifier_terms(quantity, counter), {"in": channels, "out": num_classes}, 0, ())


def _symbols(channels: int, mid: int, out: int) -> dict[str, int]:
    same = channels if channels == out else 0
    return {"in": channels, "mid": mid, "out": out, "squeeze": squeezed_width(mid), "same": same}


def _memory(
    structure: Structure,
    image_size: int,
    maps: Geometry,
    num_classes: int,
    rules: Rules,
    image: str,
    patches: Patches | None = None,
) -> int:
    if image not in ("resident", "stream"):
        raise ConfigError(f"image={image!r}: must be resident or stream")
    is_resident = image == "resident"
    widths = [structure.stem, *(block.out for block in structure.blocks)]
    is_aligned = all(width % 4 == 0 for width in (*widths, *(block.mid for block in structure.blocks)))
    # While tiles are computed the map they are put together to is there too, and the image where it stays.
    held = image_size**2 * structure.channels if patches is not None and is_resident else 0
    held += maps.patched_side**2 * structure.blocks[patches.blocks - 1].out if patches is not None else 0
    stem = stem_form(rules, structure.channels * structure.stem_kernel**2, structure.channels, False, False)
    stem_symbols = {"in": structure.channels, "out": structure.stem}
    stem_sides = (image_size, maps.stem_input_side, maps.stem_side)
    peak = held + form_bytes(stem, stem_symbols, stem_sides)
    for index, (block, each) in enumerate(zip(structure.blocks, maps.maps, strict=True)):
        symbols = _symbols(widths[index], block.mid, block.out)
        for is_first, map_sides in ((True, each.first_sides), (False, each.other_sides)):
            if not is_first and block.layers == 1:
                continue
            stride = block.stride if is_first else 1
            has_skip = stride == 1 and (not is_first or widths[index] == block.out)
            claims = in_place_claims(block.kind, symbols, block.kernel, is_first=is_first, stride=stride)
            facts = Facts(is_aligned, frozenset(index for index, holds in claims.items() if holds))
            orders = block_forms(
                block.kind, rules, is_first=is_first, stride=stride, has_skip=has_skip, facts=facts
            )  # fmt: skip
            is_tiled = patches is not None and (
                index < patches.blocks - 1 or (index == patches.blocks - 1 and is_first)
            )
            bytes_alive = peak_bytes(orders, block.kind, symbols, block.kernel, map_sides, stride)
            peak = max(peak, int(bytes_alive) + (held if is_tiled else 0))
    tail = {"in": widths[-1], "out": structure.head, "classes": num_classes}
    for form in tail_forms(rules, structure.head > 0, maps.end_side, is_aligned):
        peak = max(peak, form_bytes(form, tail, [maps.end_side]))
    return int(peak)
