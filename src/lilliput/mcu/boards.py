"""The boards an emitted project runs on, and the linker script that holds an image to a board and a budget.

Instructions are counted on an emulated board by its SysTick timer, which runs on virtual time where one instruction is one
nanosecond: so a tick of a 25 MHz clock is 40 instructions. They are instructions, never cycles or milliseconds: no pipeline,
cache or flash wait is modelled.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from importlib.resources import files
from math import ceil, log2

from lilliput.errors import BudgetError, ConfigError

PORT = files("lilliput.mcu") / "runtime" / "port"

PORT_SRAM_BYTES = 64
"""The most that an image needs besides the model's arena, scratch and stack: start-up's variables, the stack's guard, alignment."""

# What two readings of the timer themselves take, seen as a constant on top of each count; see Board.resolution_instructions.
_READING_INSTRUCTIONS = 24


@dataclass(frozen=True, kw_only=True)
class Board:
    """A target: ``host`` (this computer, natively) or a chip that QEMU and Unicorn can play."""

    name: str
    cpu: str
    """As GCC spells it: ``cortex-m4``; ``native`` for the host."""
    description: str
    flash_origin: int = 0
    flash_bytes: int = 0
    sram_origin: int = 0
    sram_bytes: int = 0
    qemu_machine: str = ""
    gcc_flags: tuple[str, ...] = ()
    zig_flags: tuple[str, ...] = ()
    instructions_per_tick: Fraction = Fraction(0)
    """Exact: 10**9 over the clock of SysTick in hertz, under ``-icount shift=0``."""

    @property
    def is_host(self) -> bool:
        """Whether the code runs natively on this computer, so that no chip's memory or instruction count applies."""
        return not self.qemu_machine

    @property
    def profile_shift(self) -> int:
        """The ``-icount`` shift (an instruction is ``2**shift`` nanoseconds) at which the timer ticks at least once an instruction."""
        return ceil(log2(self.instructions_per_tick))

    @property
    def resolution_instructions(self) -> int:
        """How far a count by SysTick may be from the truth: one tick and the two readings of the timer."""
        return ceil(self.instructions_per_tick) + _READING_INSTRUCTIONS


_MPS2_BYTES = 4 * 2**20
_M4_GCC = ("-mcpu=cortex-m4", "-mthumb", "-mfloat-abi=hard", "-mfpu=fpv4-sp-d16")
_M4_ZIG = ("-target", "thumb-freestanding-eabihf", "-mcpu=cortex_m4+vfp4d16sp")

BOARDS: dict[str, Board] = {
    board.name: board
    for board in (
        Board(name="host", cpu="native", description="this computer, natively: no instruction count, no chip memory"),
        Board(
            name="mps2-an386",
            cpu="cortex-m4",
            description="Arm MPS2 with a Cortex-M4F at 25 MHz; 4 MB + 4 MB, so the budget alone limits",
            flash_bytes=_MPS2_BYTES,
            sram_origin=0x2000_0000,
            sram_bytes=_MPS2_BYTES,
            qemu_machine="mps2-an386",
            gcc_flags=_M4_GCC,
            zig_flags=_M4_ZIG,
            instructions_per_tick=Fraction(40),
        ),
        Board(
            name="mps2-an500",
            cpu="cortex-m7",
            description="Arm MPS2 with a Cortex-M7 at 25 MHz; 4 MB + 4 MB, so the budget alone limits",
            flash_bytes=_MPS2_BYTES,
            sram_origin=0x2000_0000,
            sram_bytes=_MPS2_BYTES,
            qemu_machine="mps2-an500",
            gcc_flags=("-mcpu=cortex-m7", "-mthumb", "-mfloat-abi=hard", "-mfpu=fpv5-sp-d16"),
            zig_flags=("-target", "thumb-freestanding-eabihf", "-mcpu=cortex_m7+fp_armv8d16sp"),
            instructions_per_tick=Fraction(40),
        ),
        Board(
            name="netduinoplus2",
            cpu="cortex-m4",
            description="Netduino Plus 2: STM32F405, Cortex-M4F at 168 MHz; 1 MB of flash and 128 KB of SRAM, enforced",
            flash_origin=0x0800_0000,
            flash_bytes=2**20,
            sram_origin=0x2000_0000,
            sram_bytes=128 * 2**10,
            qemu_machine="netduinoplus2",
            gcc_flags=_M4_GCC,
            zig_flags=_M4_ZIG,
            instructions_per_tick=Fraction(10**9, 168 * 10**6),
        ),
    )
}


def find_board(name: str) -> Board:
    """The board of that name.

    Raises:
        ConfigError: there is none; the message lists those there are.
    """
    if name not in BOARDS:
        raise ConfigError(f"board={name!r}: must be one of {', '.join(BOARDS)}; try board='mps2-an386'")
    return BOARDS[name]


def linker_script(board: Board, *, sram_bytes: int | None, flash_bytes: int | None) -> str:
    """The script that links for a board and refuses an image over the budget (``None``: the board's own size).

    Raises:
        BudgetError: a limit of zero or less.
        ConfigError: the host has no linker script of ours.
    """
    if board.is_host:
        raise ConfigError("board='host' is linked by the system's own compiler and has no linker script")
    for name, limit in (("sram_bytes", sram_bytes), ("flash_bytes", flash_bytes)):
        if limit is not None and limit <= 0:
            raise BudgetError(
                f"{name}={limit:,}: a linker script needs a limit above 0, or None for the board's own size"
            )
    sram = min(sram_bytes or board.sram_bytes, board.sram_bytes)
    return _render(
        "board.ld",
        BOARD=board.name,
        DESCRIPTION=board.description,
        FLASH_ORIGIN=f"0x{board.flash_origin:08x}",
        FLASH_BYTES=str(min(flash_bytes or board.flash_bytes, board.flash_bytes)),
        SRAM_ORIGIN=f"0x{board.sram_origin:08x}",
        SRAM_BYTES=str(sram // 8 * 8),  # the stack starts at the end and must be aligned to 8
    )


def makefile(board: str) -> str:
    """A Makefile that builds and runs a project on its own; plain ``make`` is for this board.

    Raises:
        ConfigError: no such board, or the host, which has targets of its own.
    """
    if find_board(board).is_host:
        raise ConfigError(
            "board='host': the Makefile's default must be a chip (`make host` is always there); try 'mps2-an386'"
        )
    chips = [chip for chip in BOARDS.values() if not chip.is_host]

    def each(variable: str, values: dict[str, str]) -> str:
        return "\n".join(f"{variable}_{chip} = {value}" for chip, value in values.items())

    return _render(
        "Makefile",
        BOARD=board,
        BOARDS=" ".join(chip.name for chip in chips),
        FLAGS=each("FLAGS", {chip.name: " ".join(chip.gcc_flags) for chip in chips}),
        MACHINES=each("MACHINE", {chip.name: chip.qemu_machine for chip in chips}),
        RATES=each("INSTRUCTIONS_PER_TICK", {chip.name: str(chip.instructions_per_tick) for chip in chips}),
    )


def _render(template: str, **values: str) -> str:
    text = (PORT / template).read_text()
    for key, value in values.items():
        text = text.replace(f"@{key}@", value)
    return text
