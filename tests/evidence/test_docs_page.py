import re

import lilliput.evidence


def test_the_examples_on_the_docs_page_run_from_top_to_bottom(docs_page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    blocks = re.findall(r"^```python\n(.*?)^```", docs_page, re.MULTILINE | re.DOTALL)
    assert len(blocks) >= 4
    for number, block in enumerate(blocks, start=1):
        exec(compile(block, f"docs/evidence.md, block {number}", "exec"), names)
    assert (tmp_path / "runs" / "digits" / "report.html").exists()


def test_the_docs_page_names_everything_public(docs_page):
    code = " ".join(re.findall(r"`[^`]+`|^```python\n.*?^```", docs_page, re.MULTILINE | re.DOTALL))
    assert [name for name in lilliput.evidence.__all__ if re.search(rf"\b{name}\b", code) is None] == []
