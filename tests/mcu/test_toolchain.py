import importlib.metadata
import importlib.util
import shutil
import subprocess

import pytest

from lilliput.errors import ConfigError, ToolchainError
from lilliput.mcu.boards import find_board
from lilliput.mcu.toolchain import find_tool, find_toolchain, probe

APT = "sudo apt-get install --no-install-recommends gcc-arm-none-eabi qemu-system-arm"
PIP = "pip install 'lilliput[mcu]'"
PROGRAMS = {"arm-none-eabi-gcc": "gcc", "qemu-system-arm": "qemu", "cc": "cc", "gcc": "cc", "clang": "cc"}


@pytest.fixture
def install(monkeypatch, tmp_path):
    """Pretend that exactly these tools are installed: gcc, qemu, cc as programs; zig, unicorn as packages."""

    def pretend(*names: str) -> None:
        for program, name in PROGRAMS.items():
            if name in names:
                (tmp_path / program).write_text("#!/bin/sh\necho 'tool (Debian 1:99) 12.3.4 build 7'\n")
                (tmp_path / program).chmod(0o755)
        monkeypatch.setenv("PATH", str(tmp_path))
        packages = {"ziglang": "zig", "unicorn": "unicorn"}
        find_spec, version = importlib.util.find_spec, importlib.metadata.version
        monkeypatch.setattr(
            importlib.util,
            "find_spec",
            lambda name, *rest: (
                (object() if packages[name] in names else None) if name in packages else find_spec(name, *rest)
            ),
        )
        monkeypatch.setattr(importlib.metadata, "version", lambda name: "0.5" if name in packages else version(name))

    return pretend


def test_auto_takes_gcc_and_qemu_first_and_the_packages_where_those_are_missing(install):
    board = find_board("mps2-an386")
    install("zig", "unicorn")
    assert find_toolchain(board).name == "zig-unicorn"
    install("zig", "unicorn", "gcc")
    assert find_toolchain(board).name == "zig-unicorn"
    install("zig", "unicorn", "gcc", "qemu")
    assert find_toolchain(board).name == "gcc-qemu"
    assert find_toolchain(board, "zig-unicorn").name == "zig-unicorn"


def test_half_of_each_pair_makes_a_whole(install):
    install("gcc", "unicorn")
    assert find_toolchain(find_board("mps2-an386")).name == "gcc-unicorn"


def test_a_toolchain_says_what_it_is(install):
    install("gcc", "qemu")
    assert str(find_toolchain(find_board("mps2-an386"))) == "gcc-qemu (gcc 12.3.4, qemu 12.3.4)"


def test_nothing_installed_names_all_that_is_missing_and_both_lines(install):
    install()
    with pytest.raises(ToolchainError) as error:
        find_toolchain(find_board("mps2-an386"))
    assert str(error.value) == (
        "board 'mps2-an386' needs a C compiler and an emulator (toolchain='auto'); not found: arm-none-eabi-gcc, qemu-system-arm, "
        f"ziglang (Python package), unicorn (Python package); install one of: `{APT}` (needs root) or `{PIP}` (no root)"
    )


def test_a_preferred_toolchain_is_never_replaced_by_another(install):
    install("gcc", "zig", "unicorn")
    with pytest.raises(ToolchainError, match=r"toolchain='gcc-qemu'\); not found: qemu-system-arm; install"):
        find_toolchain(find_board("mps2-an386"), "gcc-qemu")


def test_the_host_needs_a_compiler_only(install):
    install("zig")
    assert find_toolchain(find_board("host")).name == "host-zig"
    install("zig", "cc")
    assert find_toolchain(find_board("host")).name == "host-cc"


def test_a_host_without_compiler_gets_its_own_lines(install):
    install("gcc", "qemu", "unicorn")
    with pytest.raises(
        ToolchainError, match=r"needs a C compiler \(toolchain='auto'\); not found: cc, ziglang .*gcc libc6-dev.*pip"
    ):
        find_toolchain(find_board("host"))


@pytest.mark.parametrize(
    ("board", "toolchain"), [("host", "gcc-qemu"), ("mps2-an386", "host-cc"), ("mps2-an386", "keil")]
)
def test_a_toolchain_that_is_not_for_the_board_is_answered_with_those_that_are(board, toolchain):
    with pytest.raises(ConfigError, match=f"toolchain='{toolchain}' for board '{board}': must be one of auto, "):
        find_toolchain(find_board(board), toolchain)


def test_the_probe_lists_every_tool_with_its_version_or_the_line_that_installs_it(install):
    install("gcc", "zig")
    rows = {row.name: row for row in probe()}
    assert list(rows) == ["gcc", "qemu", "zig", "unicorn", "cc"]
    assert {name: row.version for name, row in rows.items()} == {
        "gcc": "12.3.4",
        "qemu": None,
        "zig": "0.5",
        "unicorn": None,
        "cc": None,
    }
    assert [row.is_installed for row in rows.values()] == [True, False, True, False, False]
    assert (rows["qemu"].install, rows["unicorn"].install) == (APT, PIP)
    assert rows["gcc"].command.endswith("/arm-none-eabi-gcc")


@pytest.mark.skipif(shutil.which("arm-none-eabi-gcc") is None, reason=f"arm-none-eabi-gcc is missing: {APT}")
def test_the_version_is_the_compilers_own():
    dumped = subprocess.run(
        ["arm-none-eabi-gcc", "-dumpfullversion"], capture_output=True, text=True, check=True
    ).stdout.strip()
    tool = find_tool("gcc")
    assert tool is not None
    assert tool.version == dumped


def test_a_program_that_cannot_be_started_is_not_taken_for_a_compiler(install, tmp_path):
    install("gcc")
    (tmp_path / "arm-none-eabi-gcc").write_text("#!/no/such/interpreter\n")
    with pytest.raises(ToolchainError, match="is installed but .*--version` fails"):
        find_tool("gcc")
