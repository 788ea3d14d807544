import numpy as np
import pytest

from lilliput.errors import ToolchainError
from lilliput.mcu import Firmware, find_toolchain, image, object_cache
from lilliput.mcu.boards import find_board


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A hand-written project with one kernel, and a cache of its own."""
    try:
        find_toolchain(find_board("host"))
    except ToolchainError as error:
        pytest.skip(str(error))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    def make(name: str, kernel: str, header: str = "int ll_f(int x);\n") -> Firmware:
        home = tmp_path / name
        for folder in ("nn", "port"):
            (home / folder).mkdir(parents=True)
        (home / "model.h").write_text(
            "#include <stdint.h>\n#define LL_MODEL_INPUT_BYTES 1u\n#define LL_MODEL_OUTPUT_BYTES 1u\n"
            "int8_t *ll_model_input(void);\nconst int8_t *ll_model_output(void);\nvoid ll_model_run(void);\n"
        )
        (home / "model.c").write_text(
            '#include "model.h"\n#include "nn/ll_f.h"\nint8_t ll_arena[1];\nint8_t *ll_model_input(void) { return ll_arena; }\n'
            "const int8_t *ll_model_output(void) { return ll_arena; }\n"
            "void ll_model_run(void) { ll_arena[0] = (int8_t)ll_f(ll_arena[0]); }\n"
        )
        (home / "weights.c").write_text("typedef int ll_none;\n")
        (home / "nn" / "ll_f.h").write_text(header)
        (home / "nn" / "ll_f.c").write_text(f'#include "ll_f.h"\nint ll_f(int x) {{ return {kernel}; }}\n')
        (home / "port" / "host_main.c").write_text((image_port() / "host_main.c").read_text())
        return Firmware(home)

    return make


def image_port():
    from lilliput.mcu.boards import PORT

    return PORT


def answer(firmware: Firmware) -> int:
    return int(firmware.run(np.array([[5]], np.int8), board="host").output[0, 0])


def test_the_same_kernel_in_another_project_is_not_compiled_again(project, monkeypatch):
    assert answer(project("one", "x + 1")) == 6
    called = []
    real = image._call
    monkeypatch.setattr(image, "_call", lambda command, where: called.append(command) or real(command, where))
    assert answer(project("two", "x + 1")) == 6
    assert not any("nn/ll_f.c" in word for command in called for word in command)
    assert any("model.c" in word for command in called for word in command)


def test_a_changed_kernel_or_header_is_compiled_anew(project):
    assert answer(project("one", "x + 1")) == 6
    assert answer(project("two", "x + 2")) == 7
    assert answer(project("three", "x + LL_K", "#define LL_K 3\nint ll_f(int x);\n")) == 8
    assert answer(project("four", "x + LL_K", "#define LL_K 4\nint ll_f(int x);\n")) == 9


def test_a_kernel_that_does_not_compile_is_not_kept(project, tmp_path):
    with pytest.raises(ToolchainError, match="ll_f"):
        answer(project("one", "y"))
    kept = list((tmp_path / "cache").rglob("*.o"))
    assert kept == []


def test_a_cache_that_cannot_be_written_only_costs_time(project, tmp_path):
    (tmp_path / "cache").write_text("a file is in the way")
    assert answer(project("one", "x + 1")) == 6


def test_flags_and_compiler_are_part_of_the_key(tmp_path):
    (tmp_path / "nn").mkdir()
    source = tmp_path / "nn" / "a.c"
    source.write_text("int a;")
    name = source.relative_to(tmp_path)
    keys = {
        object_cache.cache_key(tmp_path, name, ["cc", "-O2"], "gcc 12"),
        object_cache.cache_key(tmp_path, name, ["cc", "-O3"], "gcc 12"),
        object_cache.cache_key(tmp_path, name, ["cc", "-O2"], "gcc 13"),
    }
    assert len(keys) == 3
