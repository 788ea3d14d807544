import re
from fractions import Fraction

import pytest

from lilliput.errors import BudgetError, ConfigError
from lilliput.mcu.boards import BOARDS, find_board, linker_script, makefile


def lengths(script: str) -> dict[str, int]:
    return {region: int(length) for region, length in re.findall(r"(FLASH|RAM)\s.*LENGTH = (\d+)", script)}


def test_there_are_a_host_and_three_chips():
    assert list(BOARDS) == ["host", "mps2-an386", "mps2-an500", "netduinoplus2"]
    assert [name for name, board in BOARDS.items() if board.is_host] == ["host"]


def test_an_unknown_board_is_answered_with_the_list():
    with pytest.raises(ConfigError) as error:
        find_board("arduino")
    assert str(error.value) == (
        "board='arduino': must be one of host, mps2-an386, mps2-an500, netduinoplus2; try board='mps2-an386'"
    )


def test_instructions_a_tick_are_a_gigahertz_over_the_clock_exactly():
    assert find_board("mps2-an386").instructions_per_tick == Fraction(1_000_000_000, 25_000_000) == 40
    assert find_board("netduinoplus2").instructions_per_tick == Fraction(1_000_000_000, 168_000_000)


def test_the_netduino_has_the_memories_of_an_stm32f405():
    board = find_board("netduinoplus2")
    assert (board.flash_origin, board.flash_bytes) == (0x08000000, 1 << 20)
    assert (board.sram_origin, board.sram_bytes) == (0x20000000, 128 << 10)


@pytest.mark.parametrize(
    ("board", "sram_bytes", "flash_bytes", "expected"),
    [
        ("mps2-an386", 16_384, 131_072, {"FLASH": 131_072, "RAM": 16_384}),
        ("mps2-an386", None, None, {"FLASH": 4 << 20, "RAM": 4 << 20}),
        (
            "netduinoplus2",
            256 << 10,
            2 << 20,
            {"FLASH": 1 << 20, "RAM": 128 << 10},
        ),  # the chip is smaller than the budget
        ("netduinoplus2", 1_003, 4_001, {"FLASH": 4_001, "RAM": 1_000}),  # the top of the stack is aligned to 8
    ],
)
def test_a_linker_script_holds_to_the_smaller_of_budget_and_board(board, sram_bytes, flash_bytes, expected):
    assert lengths(linker_script(find_board(board), sram_bytes=sram_bytes, flash_bytes=flash_bytes)) == expected


def test_a_linker_script_has_no_placeholder_left():
    for board in BOARDS.values():
        if not board.is_host:
            assert "@" not in linker_script(board, sram_bytes=1024, flash_bytes=None)
            assert not re.search(r"@[A-Z]+@", makefile(board.name))


def test_a_limit_of_nothing_is_refused():
    with pytest.raises(BudgetError, match="sram_bytes=0: a linker script needs a limit above 0"):
        linker_script(find_board("mps2-an386"), sram_bytes=0, flash_bytes=None)
    with pytest.raises(BudgetError, match="flash_bytes=-1"):
        linker_script(find_board("mps2-an386"), sram_bytes=None, flash_bytes=-1)


def test_the_host_has_neither_linker_script_nor_makefile():
    with pytest.raises(ConfigError, match="no linker script"):
        linker_script(find_board("host"), sram_bytes=1024, flash_bytes=1024)
    with pytest.raises(ConfigError, match="must be a chip"):
        makefile("host")
