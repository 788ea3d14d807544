"""The command line as users meet it: in a process of its own."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

SMALL = ["--macs", "60K", "--sram", "8KB", "--flash", "48KB", "--limit", "400", "--certify", "2", "--board", "host"]
GOLDEN = Path(__file__).parent / "golden"


def lilliput(*words: str, cwd: Path, **options) -> subprocess.CompletedProcess:
    environment = {**os.environ, "COLUMNS": "100", "NO_COLOR": "1", "TERM": "dumb"}
    command = [sys.executable, "-m", "lilliput.cli", *words]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, env=environment, timeout=300, **options)


@pytest.mark.parametrize(
    "words",
    [
        ["--help"],
        ["build", "--help"],
        ["design", "--help"],
        ["deploy", "--help"],
        ["quantize", "--help"],
        ["adapt", "--help"],
        ["certify", "--help"],
        ["report", "--help"],
        ["doctor", "--help"],
    ],
    ids=" ".join,
)
def test_help_is_as_reviewed(words, tmp_path, request):
    done = lilliput(*words, cwd=tmp_path)
    assert done.returncode == 0
    path = GOLDEN / f"{'-'.join(word.strip('-') for word in words)}.txt"
    text = re.sub(r"[ \t]+\n", "\n", done.stdout)
    if request.config.getoption("--regenerate"):
        GOLDEN.mkdir(exist_ok=True)
        path.write_text(text)
    assert text == path.read_text(), f"{path.name} differs; after review: pytest --regenerate"


def test_help_loads_nothing_heavy():
    heavy = [
        "torch",
        "numpy",
        "matplotlib",
        "sklearn",
        "scipy",
        "lightning_fabric",
        "unicorn",
        "elftools",
        "jinja2",
        "PIL",
    ]
    code = (
        "import sys, contextlib, io\n"
        "from lilliput.cli import main\n"
        "for verb in ('build', 'design', 'deploy', 'quantize', 'adapt', 'certify', ''):\n"
        "    words = [*([verb] if verb else []), '--help']\n"
        "    with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):\n"
        "        main(words)\n"
        f"print([name for name in {heavy} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "[]", done.stdout + done.stderr


MESSAGES = {
    "unknown-verb": ["biuld"],
    "unknown-data": ["build", "--out", "run", "--data", "digitz", "--board", "host", "--quiet"],
    "bad-size": ["build", "--out", "run", "--sram", "16KO"],
    "bad-epochs": ["build", "--out", "run", "--epochs", "0"],
    "unknown-board": ["build", "--out", "run", "--board", "arduino"],
    "design-without-budget": ["design"],
    "design-that-cannot-be": ["design", "--macs", "1M", "--params", "11.69M", "--out", "run", "--quiet"],
    "deploy-missing-model": ["deploy", "nowhere.tflite", "--out", "run", "--board", "host"],
    "deploy-labels-alone": ["deploy", "small.tflite", "--out", "run", "--labels", "y.npy"],
    "deploy-unknown-board": ["deploy", "small.tflite", "--out", "run", "--board", "arduino"],
    "adapt-missing-model": ["adapt", "nowhere.tflite", "--out", "run", "--board", "host"],
    "adapt-unknown-scheme": ["adapt", "small.tflite", "--out", "run", "--scheme", "last"],
    "adapt-bad-rate": ["adapt", "small.tflite", "--out", "run", "--rate", "0"],
    "certify-missing-model": ["certify", "nowhere", "--out", "run"],
    "certify-bad-eps": ["certify", "nowhere", "--out", "run", "--eps", "8/0"],
    "certify-bad-clip": ["certify", "nowhere", "--out", "run", "--clip", "0-1"],
    "quantize-missing-model": ["quantize", "nowhere", "--out", "run"],
    "quantize-dense": ["quantize", "nowhere", "--out", "run", "--storage", "dense"],
    "quantize-granularity": ["quantize", "nowhere", "--out", "run", "--granularity", "column"],
    "report-missing": ["report", "nowhere"],
}


@pytest.mark.parametrize("name", MESSAGES)
def test_a_users_error_is_one_line_as_reviewed_and_exits_with_2(name, tmp_path, request):
    done = lilliput(*MESSAGES[name], cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    path = GOLDEN / "messages.json"
    known = json.loads(path.read_text()) if path.exists() else {}
    if request.config.getoption("--regenerate"):
        GOLDEN.mkdir(exist_ok=True)
        known[name] = done.stderr.strip()
        path.write_text(json.dumps(dict(sorted(known.items())), indent=1, ensure_ascii=False) + "\n")
    assert done.stderr.strip() == known[name]


def test_quantize_writes_a_file_and_says_how_it_stands(tmp_path):
    import torch

    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(32, 16), torch.nn.ReLU(), torch.nn.Linear(16, 4)).eval()
    torch.export.save(torch.export.export(model, (torch.zeros(1, 32),)), tmp_path / "net.pt2")
    done = lilliput("quantize", "net.pt2", "--method", "rtn", "--bits", "4", "--out", "run", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("rtn-4 row: ")
    evidence = json.loads((tmp_path / "run" / "evidence.json").read_text())
    assert (tmp_path / "run" / "artifacts" / "quantized.safetensors").stat().st_size == evidence["file.bytes"]["value"]
    assert "Error of outputs" in (tmp_path / "run" / "report.html").read_text()
    again = lilliput("quantize", "net.pt2", "--out", "run", cwd=tmp_path)
    assert again.returncode == 2
    assert "run" in again.stderr


def test_debug_shows_the_traceback(tmp_path):
    done = lilliput("report", "nowhere", "--debug", cwd=tmp_path)
    assert "Traceback" in done.stderr
    assert done.returncode == 1


def test_a_fault_of_ours_exits_with_1(tmp_path, monkeypatch, capsys):
    import lilliput.cli

    monkeypatch.setattr(lilliput.cli, "_run", lambda *_: 1 / 0)
    assert lilliput.cli.main(["build"]) == 1
    assert "internal error: ZeroDivisionError" in capsys.readouterr().err


def test_version_and_doctor_answer(tmp_path):
    assert re.fullmatch(r"lilliput \d+\.\d+\.\d+\n", lilliput("--version", cwd=tmp_path).stdout)
    done = lilliput("doctor", cwd=tmp_path)
    assert done.returncode == 0
    for word in ("torch", "qemu", "unicorn", "firmware for mps2-an386"):
        assert word in done.stdout


def test_design_prints_the_network_and_leaves_a_file_that_builds_it(tmp_path):
    words = [
        "design",
        "--macs",
        "2M",
        "--sram",
        "24KB",
        "--flash",
        "40KB",
        "--image-size",
        "32",
        "--classes",
        "10",
        "--rho",
        "0.6",
    ]
    done = lilliput(*words, "--time-limit", "0.2", "--no-curves", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("super block")
    assert done.stdout.splitlines()[-1] == "report: runs/design/report.html"
    text = (tmp_path / "runs" / "design" / "artifacts" / "design.json").read_text()
    from lilliput.design import Design

    found = Design.from_json(text)
    assert found.chip_cost().sram_bytes <= 24 * 1024
    assert found.build(10)


def test_deploy_of_what_a_build_left_prints_its_verdict_and_refuses_a_budget_in_one_line(whole):
    words = ["deploy", "runs/one", "--sram", "8KB", "--flash", "48KB", "--board", "host", "--inputs", "2"]
    done = lilliput(*words, "--out", "runs/two", cwd=whole.parents[1])
    assert done.returncode == 0, done.stderr
    first, second, *lines = done.stdout.splitlines()
    assert re.fullmatch(r"one: [\d,]+ MACs, every layer as a whole; [\d,]+ bytes of SRAM planned", first)
    assert second.startswith(
        "ran on this computer only (board=host): every output byte as the integer interpreter says"
    )
    assert lines[-1] == "report: runs/two/report.html"
    assert (whole.parent / "two" / "artifacts" / "firmware" / "model.c").is_file()
    refused = lilliput(*words, "--out", "runs/three", "--sram", "1KB", cwd=whole.parents[1])
    assert refused.returncode == 2
    assert refused.stderr.count("\n") == 1
    assert refused.stderr.startswith("BudgetError: 'one' needs ")
    assert not list(whole.parent.glob("three*"))


def test_adapt_teaches_what_a_build_left_its_own_images_turned(whole):
    words = [
        "adapt",
        "runs/one",
        "--shift",
        "rotate",
        "--scheme",
        "head",
        "--steps",
        "400",
        "--board",
        "host",
        "--emulate",
        "8",
    ]
    done = lilliput(*words, "--no-pytorch", "--out", "runs/turned", cwd=whole.parents[1])
    assert done.returncode == 0, done.stderr
    first, second, third, *lines = done.stdout.splitlines()
    assert re.fullmatch(r"digits: 10 classes, 16x16x1; [\d,]+ train, .*; the head it has", first)
    assert re.fullmatch(r"one: trains the head, 0 biases and no weights .*; [\d,]+ bytes of SRAM planned", second)
    assert third.startswith("ran on this computer only (board=host): ")
    assert "Python and C learn the same" in third
    assert "adapting" in done.stderr
    assert lines[-1] == "report: runs/turned/report.html"
    figures = json.loads((whole.parent / "turned" / "evidence.json").read_text())
    assert figures["accuracy.after"]["value"] > figures["accuracy.before"]["value"]
    assert "weights.digest_match" not in figures


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """An uninterrupted run, to compare with."""
    home = tmp_path_factory.mktemp("whole")
    done = lilliput("build", "--out", "runs/one", "--epochs", "12", "--quiet", *SMALL, cwd=home)
    assert done.returncode == 0, done.stderr
    (home / "stdout.txt").write_text(done.stdout)
    return home / "runs" / "one"


def test_build_prints_the_verdict_its_figures_and_where_the_report_is(whole):
    lines = (whole.parents[1] / "stdout.txt").read_text().splitlines()
    figures = json.loads((whole / "evidence.json").read_text())
    assert lines[0].startswith("ran on this computer only (board=host)")
    assert lines[-1] == "report: runs/one/report.html"
    assert f"{figures['accuracy.host']['value']:.2%}" in " ".join(lines)
    assert any(line.split()[:3] == ["outputs.mismatching_bytes", "0", "bytes"] for line in lines)


def test_report_draws_the_page_again(whole):
    again = lilliput("report", str(whole), cwd=whole.parent)
    assert again.returncode == 0
    assert Path(again.stdout.strip()) == whole / "report.html"


def test_a_second_build_into_the_same_place_is_refused(whole):
    before = (whole / "run.json").read_bytes()
    done = lilliput("build", "--out", "runs/one", "--quiet", *SMALL, cwd=whole.parents[1])
    assert done.returncode == 2
    assert "exists already" in done.stderr
    assert (whole / "run.json").read_bytes() == before


def test_interrupted_training_leaves_only_a_partial_run_and_resume_ends_at_the_same_bits(whole, tmp_path):
    words = ["build", "--out", "runs/one", "--epochs", "12", "--quiet", *SMALL]
    process = subprocess.Popen(
        [sys.executable, "-m", "lilliput.cli", *words], cwd=tmp_path, stderr=subprocess.PIPE, text=True
    )
    checkpoint = tmp_path / "runs" / "one.partial" / "train.checkpoint"
    deadline = time.monotonic() + 240
    while not checkpoint.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 130, errors
    assert "--resume continues it" in errors
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["one.partial"]
    assert not (tmp_path / "runs" / "one.partial" / "artifacts" / "model.safetensors").exists()

    refused = lilliput(*words, cwd=tmp_path)
    assert refused.returncode == 2
    assert "--resume" in refused.stderr
    other = lilliput(*words, "--resume", "--seed", "5", cwd=tmp_path)
    assert other.returncode == 2
    assert "seed" in other.stderr

    done = lilliput(*words, "--resume", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["one"]
    resumed, uninterrupted = tmp_path / "runs" / "one", whole
    weights = "artifacts/model.safetensors"
    assert (resumed / weights).read_bytes() == (uninterrupted / weights).read_bytes()
    assert not (resumed / "train.checkpoint").exists()
    ours, theirs = (json.loads((run / "evidence.json").read_text()) for run in (resumed, uninterrupted))
    assert ours == theirs
    assert json.loads((resumed / "run.json").read_text())["attempts"] == 2
