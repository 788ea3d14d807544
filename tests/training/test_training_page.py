import re
from pathlib import Path

import pytest

import lilliput.training

PAGE = (Path(__file__).parents[2] / "docs" / "training.md").read_text(encoding="utf-8")


def test_the_examples_on_the_docs_page_run_from_top_to_bottom(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    for number, block in enumerate(re.findall(r"^```python\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL), start=1):
        exec(compile(block, f"docs/training.md, block {number}", "exec"), names)
    assert (tmp_path / "fit.ckpt").exists()


def test_the_docs_page_names_everything_public():
    assert [name for name in lilliput.training.__all__ if f"`{name}" not in PAGE] == []
