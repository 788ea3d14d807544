"""What a linked image really takes, read from the image itself: never from what was planned."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lilliput.errors import ToolchainError

PARTS = ("weights", "kernels", "model", "runtime", "other")


@dataclass(frozen=True, kw_only=True)
class ImageSizes:
    """Bytes of a linked image by where they lie and who put them there."""

    data_bytes: int
    """Initialised variables: in SRAM, and once more as an image in flash."""
    bss_bytes: int
    """``.data`` and ``.bss`` together: all the SRAM that is not stack."""
    flash_bytes: int
    """From the first to the last byte that is loaded into flash: vectors, code, constants, the image of ``.data``."""
    arena_bytes: int
    scratch_bytes: int
    flash_parts: Mapping[str, int]
    """Flash by origin: weights, kernels, model, runtime (start-up, files, main), other (compiler library, gaps). Sums to the total."""
    flash_symbols: Mapping[str, int]
    """Flash by function or constant, largest first."""


def image_sizes(image: Path, objects: Mapping[str, list[Path]], flash_origin: int) -> ImageSizes:
    """Sizes of a linked board image.

    Args:
        image: the ELF file.
        objects: the object files it was linked from, by part.
        flash_origin: where the flash starts.
    """
    with image.open("rb") as file:
        elf = _elf(file, image)
        sections = {section.name: section for section in elf.iter_sections()}
        data_bytes = sections[".data"]["sh_size"] if ".data" in sections else 0
        bss_bytes = sections[".bss"]["sh_size"] if ".bss" in sections else 0
        flash_bytes = (
            max(s["p_paddr"] + s["p_filesz"] for s in elf.iter_segments("PT_LOAD") if s["p_filesz"]) - flash_origin
        )
        loaded = {
            index
            for index, section in enumerate(elf.iter_sections())
            if section["sh_flags"] & 2 and section["sh_type"] != "SHT_NOBITS"  # SHF_ALLOC
        }
        symbols = list(_symbols(elf))
    owners = _owners(objects)
    parts = dict.fromkeys(PARTS, 0)
    by_name: dict[str, int] = {}
    seen: set[int] = set()  # two names of one function are one function
    for source, name, address, size, section in symbols:
        if section in loaded and size and address not in seen:
            seen.add(address)
            parts[owners.get((source, name), "other")] += size
            by_name[name] = by_name.get(name, 0) + size
    parts["other"] += flash_bytes - sum(parts.values())
    variables = {name: size for _, name, _, size, _ in symbols}
    return ImageSizes(
        data_bytes=data_bytes,
        bss_bytes=data_bytes + bss_bytes,
        flash_bytes=flash_bytes,
        arena_bytes=variables.get("ll_arena", 0),
        scratch_bytes=variables.get("ll_scratch", 0),
        flash_parts=parts,
        flash_symbols=dict(sorted(by_name.items(), key=lambda row: (-row[1], row[0]))),
    )


def variable_bytes(image: Path, names: tuple[str, ...]) -> dict[str, int] | None:
    """Sizes of variables in any ELF file (0 where one is absent); ``None`` if the file is of another format (macOS, Windows)."""
    with image.open("rb") as file:
        if file.read(4) != b"\x7fELF":
            return None
        sizes = {name: size for _, name, _, size, _ in _symbols(_elf(file, image))}
    return {name: sizes.get(name, 0) for name in names}


def function_at(image: Path, address: int) -> str | None:
    """The function that an address of the code lies in."""
    with image.open("rb") as file:
        for _, name, start, size, _ in _symbols(_elf(file, image)):
            if start & ~1 <= address & ~1 < (start & ~1) + size:
                return name
    return None


def _elf(file: Any, path: Path) -> Any:
    from elftools.common.exceptions import ELFError
    from elftools.elf.elffile import ELFFile

    try:
        return ELFFile(file)
    except ELFError as error:
        raise ToolchainError(f"{path}: not an ELF image ({error}); delete its directory and build again") from error


def _symbols(elf: Any) -> Iterator[tuple[str, str, int, int, int]]:
    """(source file of a local symbol or "", name, address, size, section) of each function and variable."""
    table = elf.get_section_by_name(".symtab")
    if table is None:
        return
    source = ""
    for symbol in table.iter_symbols():
        kind, binding = symbol["st_info"]["type"], symbol["st_info"]["bind"]
        if kind == "STT_FILE":
            source = Path(symbol.name).name
        elif kind in ("STT_FUNC", "STT_OBJECT") and isinstance(symbol["st_shndx"], int):
            owner = source if binding == "STB_LOCAL" else ""
            yield owner, symbol.name, symbol["st_value"], symbol["st_size"], symbol["st_shndx"]


def _owners(objects: Mapping[str, list[Path]]) -> dict[tuple[str, str], str]:
    owners: dict[tuple[str, str], str] = {}
    for part, paths in objects.items():
        for path in paths:
            with path.open("rb") as file:
                owners |= {(source, name): part for source, name, _, _, _ in _symbols(_elf(file, path))}
    return owners
