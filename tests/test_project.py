"""Laws of the house that no room can hold alone."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_imports_go_down_only():
    done = subprocess.run(
        [str(Path(sys.executable).parent / "lint-imports"), "--no-cache"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout


def test_importing_the_package_loads_nothing_and_touches_no_global_state():
    heavy = ["torch", "numpy", "matplotlib", "tyro"]
    code = f"import sys, lilliput.cli, lilliput.errors; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "[]"


def test_the_version_is_said_once():
    import lilliput

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["version"] == lilliput.__version__


def test_torch_is_pinned_for_the_two_commands():
    assert re.search(r"^torch==2\.13\.0$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)


def test_every_extra_that_an_error_names_exists():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    named = set()
    for path in (ROOT / "src").rglob("*.py"):
        named |= set(re.findall(r"lilliput\[(\w+)\]", path.read_text()))
    assert named - {"extra"} <= set(extras)


def test_the_package_ships_its_c_sources_templates_and_schemas(tmp_path):
    source = ROOT / "src" / "lilliput"
    for pattern in ("mcu/runtime/nn/ll_nn.h", "mcu/runtime/port/startup.c", "mcu/runtime/port/board.ld", "evidence/page.html.j2",
                    "evidence/evidence.schema.json", "py.typed"):  # fmt: skip
        assert (source / pattern).is_file(), pattern
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    wheel = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert wheel.returncode == 0, wheel.stderr
    import zipfile

    (built,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(built).namelist()
    for path in source.rglob("*"):
        if path.is_file() and "__pycache__" not in path.parts:
            assert str(path.relative_to(ROOT / "src")) in names, path
