"""Low-bit networks of exports and of BERT folders: every figure is checked against the room's functions or the file itself."""

import copy
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from certify.digit_networks import digits, trained_mlp
from data.test_bert import SIZES, tensors
from lilliput.data import load_texts
from lilliput.errors import ConfigError, DataError
from lilliput.evidence import Run
from lilliput.jobs.quantize import QuantizeConfig, load_network, quantize
from lilliput.jobs.quantize_report import beaten_by
from lilliput.quantize import SplitConfig
from lilliput.quantize import quantize as pack

COUNT = 200


def config(model: str, tmp_path: Path, **options) -> QuantizeConfig:
    return QuantizeConfig(**{"model": model, "out": str(tmp_path / "run"), "quiet": True, **options})


@pytest.fixture(scope="module")
def mlp() -> nn.Module:
    return copy.deepcopy(trained_mlp()).float()  # the cached one stays float64 for others


@pytest.fixture(scope="module")
def mlp_files(mlp, tmp_path_factory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("mlp")
    x, y = digits(COUNT)
    torch.export.save(torch.export.export(mlp, (x[:1].float(),)), folder / "net.pt2")
    np.save(folder / "x.npy", x.numpy())
    np.save(folder / "y.npy", y.numpy())
    return {"model": str(folder / "net.pt2"), "data": str(folder / "x.npy"), "labels": str(folder / "y.npy")}


@pytest.fixture(scope="module")
def swept(mlp_files, tmp_path_factory) -> Run:
    return quantize(config(**mlp_files, tmp_path=tmp_path_factory.mktemp("swept"), sweep=True))


def test_the_figures_are_those_of_the_quantized_network(mlp, mlp_files, swept):
    x, y = digits(COUNT)
    x = x.float()
    q = pack(mlp, SplitConfig())
    with torch.no_grad():
        wanted, found = mlp(x), q(x)
    figures = {name: each.value for name, each in swept.evidence.items()}
    assert figures["weights.quantized"] == 64 * 32 + 32 * 32 + 32 * 10
    assert figures["bits.per_weight"] == pytest.approx(q.stored_bits_per_weight())
    assert figures["accuracy.float"] == pytest.approx(float((wanted.argmax(1) == y).double().mean()))
    assert figures["accuracy.quantized"] == pytest.approx(float((found.argmax(1) == y).double().mean()))
    assert figures["agreement"] == pytest.approx(float((found.argmax(1) == wanted.argmax(1)).double().mean()))
    assert figures["error.outputs"] == pytest.approx(float((found - wanted).norm() / wanted.norm()), rel=1e-4)
    assert figures["file.bytes"] == (swept.path / "artifacts" / "quantized.safetensors").stat().st_size
    assert figures["float.bytes"] == 4 * sum(parameter.numel() for parameter in mlp.parameters())


def test_the_file_loads_back_to_the_same_outputs(mlp, swept):
    x, _ = digits(COUNT)
    assert swept.evidence["file.loads_back"].value is True
    with torch.no_grad():
        torch.testing.assert_close(load_network(str(swept.path))(x.float()), pack(mlp, SplitConfig())(x.float()))


def test_a_sweep_has_every_method_at_every_width_and_draws_three_curves(swept):
    names = {row["name"] for row in swept.result("compare")["rows"]}
    for bits in (2, 3, 4, 8):
        assert {f"split-{bits} row", f"rtn-{bits} row", f"lut-{2**bits} row", f"hqq-{bits} g64"} <= names
    methods = swept.report.sections[1]
    assert [block.title for block in methods.blocks[:3]] == [
        "Error of outputs",
        "Agreement with the float network",
        "Accuracy",
    ]
    for family in ("SplitQuant", "rounding", "lookup table", "HQQ"):
        assert f"{family}: " in methods.blocks[0].alt
    stored = [row[2] for row in methods.blocks[3].rows]
    assert stored == sorted(stored)


def test_best_so_far_is_what_no_method_of_as_few_bits_beats(swept):
    rows = swept.report.sections[1].blocks[3].rows
    least = float("inf")
    for name, _, _, _, _, error, *_, best in rows:
        if error < least:
            assert best == "yes", name
        least = min(least, error)
    assert rows[0][-1] == "yes"
    assert "" in [row[-1] for row in rows]


@pytest.mark.parametrize("method", ["splitquant", "rtn", "lut", "hqq"])
def test_rivals_of_the_same_stored_bits_are_always_in_the_table(mlp_files, tmp_path, method):
    run = quantize(config(**mlp_files, tmp_path=tmp_path, method=method, bits=2))
    rows = run.result("compare")["rows"]
    bits = rows[0]["bits_per_weight"]
    assert {row["family"] for row in rows} == {"SplitQuant", "rounding", "lookup table", "HQQ"}
    assert any(row["family"] == "rounding" and bits - 1.1 <= row["bits_per_weight"] <= bits + 0.1 for row in rows)
    verdict = run.report.verdict
    best = min((row for row in rows if row["bits_per_weight"] <= bits), key=lambda row: row["output_error"])
    assert ("no other method here" in verdict) == (best is rows[0])
    assert best is rows[0] or f"{best['name']} has a smaller error" in verdict


def test_options_reach_the_method(mlp, mlp_files, tmp_path):
    options = {"ranges": "zeros", "storage": "dense", "granularity": "group:16", "scales": "float32", "k": 2}
    run = quantize(config(**mlp_files, tmp_path=tmp_path, bits=3, **options, skip=("*linear_2",)))
    expected = pack(
        mlp,
        SplitConfig(
            bits=3, k=2, mask_aware=False, storage="dense", granularity="group", group_size=16, scale_dtype="float32",
            skip=("4",),
        ),
    )  # fmt: skip
    assert run.evidence["weights.quantized"].value == 64 * 32 + 32 * 32
    assert run.evidence["bits.per_weight"].value == pytest.approx(expected.stored_bits_per_weight())
    assert run.report.title.endswith(f"{expected.stored_bits_per_weight():.2f} bits a weight")


def test_without_data_outputs_are_compared_on_random_inputs(mlp_files, tmp_path):
    run = quantize(config(mlp_files["model"], tmp_path, method="rtn", bits=5))
    assert "accuracy.quantized" not in run.evidence
    assert "256 random normal inputs" in run.evidence["agreement"].source
    assert run.evidence["agreement"].n == 256
    assert run.evidence["error.outputs"].value < 0.2


@pytest.fixture(scope="module")
def bert(tmp_path_factory) -> dict[str, str]:
    """A folder of an untrained encoder, and texts that name their class."""
    from safetensors.torch import save_file

    folder = tmp_path_factory.mktemp("bert")
    words = [f"w{index}" for index in range(SIZES["vocab_size"] - 4)]
    (folder / "config.json").write_text(json.dumps({"model_type": "bert", **SIZES}))
    (folder / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *words]) + "\n")
    save_file(tensors(), folder / "model.safetensors")
    rng = np.random.default_rng(0)
    lines = []
    for index in range(160):
        label = index % 2
        text = " ".join(f"w{rng.integers(0, 3) + 20 * label}" for _ in range(5 + index % 5))
        lines.append(f"{('low', 'high')[label]}\t{text}\n")
    (folder / "texts.tsv").write_text("".join(lines))
    return {"model": str(folder), "data": str(folder / "texts.tsv")}


def test_a_folder_of_an_encoder_gets_a_head_that_stays_float(bert, tmp_path):
    run = quantize(config(**bert, tmp_path=tmp_path, head_texts=80, storage="radix"))
    assert run.evidence["accuracy.float"].value >= 0.85  # classes share no word
    assert run.evidence["accuracy.float"].n == len(load_texts(bert["data"])) - 80
    state = load_file(run.path / "artifacts" / "quantized.safetensors")
    assert state["head.weight"].dtype == torch.float32
    assert "encoder.encoder.layer.0.attention.self.query.packed.codes" in state
    assert run.evidence["weights.quantized"].value == 2 * (4 * 8 * 8 + 2 * 8 * 12)


def test_a_head_may_be_fitted_on_texts_of_another_file(bert, tmp_path):
    lines = Path(bert["data"]).read_text().splitlines(keepends=True)
    (tmp_path / "head.tsv").write_text("".join(lines[:100]))
    (tmp_path / "test.tsv").write_text("".join(lines[90:]))
    run = quantize(
        config(bert["model"], tmp_path, data=str(tmp_path / "test.tsv"), head_data=str(tmp_path / "head.tsv"))
    )
    assert run.evidence["agreement"].n <= 60  # those that the head was fitted on are not tested on
    assert run.evidence["accuracy.float"].value >= 0.8


def test_what_cannot_be_is_refused(mlp_files, bert, tmp_path):
    np.save(tmp_path / "long.npy", np.zeros((4, 65), np.float32))
    np.save(tmp_path / "few.npy", np.zeros(3, np.int64))
    model, data = mlp_files["model"], mlp_files["data"]
    for given, options, error, words in (
        ("nowhere", {}, DataError, "there is no such file or run"),
        (model, {"data": str(tmp_path / "long.npy")}, DataError, r"has shape \[4, 65\]; the network takes \(n, 64"),
        (model, {"data": data, "labels": str(tmp_path / "few.npy")}, DataError, "needs 200 whole numbers"),
        (model, {"data": "digits"}, DataError, "no square images"),
        (model, {"data": "x.npy"}, DataError, "cannot be read as a .npy file"),
        (model, {"data": "digits", "labels": data}, ConfigError, "go with data='x.npy' alone"),
        (model, {"head_data": "t.tsv"}, ConfigError, "only a folder of a BERT network"),
        (bert["model"], {}, ConfigError, "needs labelled texts"),
        (bert["model"], {"data": bert["data"], "head_texts": 1000}, ConfigError, "leaves none of the"),
        (model, {"skip": ("*",)}, ConfigError, "no layer to quantize"),
    ):
        with pytest.raises(error, match=words):
            quantize(config(given, tmp_path, **options))
        assert not (tmp_path / "run").exists()
    for options, words in (
        ({"bits": 9}, "must be 1 to 8"),
        ({"k": 1}, "must be 2 to 16"),
        ({"limit": 0}, "must be 1 or more"),
        ({"granularity": "group"}, "must be row, tensor, or group:N"),
        ({"storage": "dense"}, "try method='splitquant' with ranges='zeros'"),
        ({"labels": "y.npy"}, "try data='x.npy'"),
        ({"out": ""}, "name a directory"),
    ):
        with pytest.raises(ConfigError, match=words):
            config(model, tmp_path, **options)


def test_a_row_is_beaten_by_a_smaller_error_at_no_more_bits_alone():
    from lilliput.jobs.quantize import Row

    def row(name: str, bits: float, error: float) -> Row:
        return Row(name, "rounding", "lut", bits, 100, 0.1, error, 1.0, None, 0.0)

    rows = [row("a", 2.0, 0.3), row("b", 3.0, 0.1), row("c", 3.0, 0.2), row("d", 4.0, 0.1)]
    assert [beaten_by(each, rows) for each in rows] == [None, None, rows[1], None]
