"""From a float network to one of a few bits a weight: a file that loads back, and a table of what every method would have kept.

The network is what a finished build left, a file of ``torch.export``, or a folder of a BERT encoder with a linear head that is fitted here.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

from tyro.conf import Positional

from lilliput.errors import ConfigError, DataError
from lilliput.evidence import Evidence, Run
from lilliput.jobs.quantize_methods import asked_method, compared_methods, parse_granularity

if TYPE_CHECKING:
    from lilliput.jobs.quantize_subject import Trial
    from lilliput.quantize import QuantizedModel

_FILE = "quantized.safetensors"


@dataclass(frozen=True, kw_only=True)
class QuantizeConfig:
    """Pack a network's weights into a few bits, and show what that does to its outputs beside every other method.

    Examples:
        lilliput quantize runs/digits --out runs/digits-2bit
        lilliput quantize runs/digits --method rtn --bits 4 --sweep --out runs/digits-sweep
        lilliput quantize net.pt2 --data x.npy --labels y.npy --granularity group:64 --method hqq --bits 3 --out runs/net
        lilliput quantize all-MiniLM-L6-v2 --data SMSSpamCollection.tsv --limit 250 --storage radix --out runs/sms
    """

    model: Positional[str]
    """The directory of a finished build, a file of torch.export.save, or a folder of a BERT network (config.json beside its weights)."""
    out: str
    """Directory of the run; it must not exist yet (while the job works it is called OUT.partial)."""
    method: Literal["splitquant", "rtn", "lut", "hqq"] = "splitquant"
    """splitquant: clusters with levels of their own. rtn: rounding. lut: a table of the best levels. hqq: half-quadratic zero points."""
    bits: int = 2
    """Bits of a weight's code, 1 to 8; a split adds what names the cluster, a table has 2**bits levels."""
    k: int = 3
    """Clusters of a split, 2 to 16."""
    granularity: str = "row"
    """Which weights share levels: row (output or kernel), tensor, or group:N of a row."""
    ranges: Literal["fitted", "members", "zeros"] = "fitted"
    """Levels of a cluster: fitted to its members, their range, or a range that holds zero (as published)."""
    storage: Literal["lut", "radix", "dense"] = "lut"
    """lut: whole bits a symbol. radix: symbols packed without loss. dense: three tensors of a split, as published; with --ranges zeros."""
    scales: Literal["float16", "float32"] = "float16"
    """How steps and starts are held; float32 suits codes of 8 bits."""
    skip: tuple[str, ...] = ()
    """Patterns of layers that stay float, as layers.linear or encoder.*; a fitted head always does."""
    sweep: bool = False
    """Compare all methods at 2, 3, 4 and 8 bits."""
    data: str | None = None
    """Inputs to try the network on: labelled texts, what build takes (its test part is used), or a .npy; if left out, a build's own."""
    labels: str | None = None
    """Classes of the inputs of a .npy file, a .npy file too."""
    head_data: str | None = None
    """Labelled texts to fit the head on, where they are apart; if left out, some of --data, which then are not tested on."""
    head_texts: int = 650
    """How many texts to fit the head on."""
    limit: int = 1000
    """Most inputs to try, a draw by seed."""
    seed: int = 0
    """Of what is drawn; quantizing itself draws nothing."""
    resume: bool = False
    """Continue an interrupted run of the same config."""
    quiet: bool = False
    """Print nothing but the result."""

    def __post_init__(self) -> None:
        parse_granularity(self.granularity)
        for name, least in (("head_texts", 2), ("limit", 1), ("seed", 0)):
            if getattr(self, name) < least:
                raise ConfigError(f"{name}={getattr(self, name)}: must be {least} or more; try {name}={max(1, least)}")
        if not 1 <= self.bits <= 8:
            raise ConfigError(f"bits={self.bits}: must be 1 to 8; try bits=2")
        if not 2 <= self.k <= 16:
            raise ConfigError(f"k={self.k}: must be 2 to 16 clusters; try k=3")
        if self.storage == "dense" and (self.method != "splitquant" or self.ranges != "zeros"):
            raise ConfigError(
                "storage='dense': is the three tensors of a split whose ranges hold zero; "
                "try method='splitquant' with ranges='zeros', or storage='lut' for a smaller file"
            )
        if self.labels is not None and self.data is None:
            raise ConfigError("labels: are of the inputs of data, which is left out; try data='x.npy'")
        if not self.out:
            raise ConfigError("out='': must name a directory; try out='runs/quantized'")


@dataclass(frozen=True)
class Row:
    """One method of the table."""

    name: str
    family: str
    storage: str
    bits_per_weight: float
    file_bytes: int
    weight_error: float
    output_error: float
    agreement: float
    accuracy: float | None
    seconds: float


@dataclass(frozen=True)
class Quantized:
    """Everything that was found, as the report needs it."""

    trial: Trial
    rows: list[Row]
    """The asked method first."""
    float_bytes: int
    float_accuracy: float | None
    weights: int
    """How many were quantized."""
    file_bytes: int
    outputs: int
    late: list[str]
    """Methods that would have taken too long."""

    @property
    def asked(self) -> Row:
        """The row that the file is of."""
        return self.rows[0]


def quantize(config: QuantizeConfig) -> Run:
    """Do the whole job.

    Returns:
        The finished run; ``artifacts/quantized.safetensors`` is the network, and :func:`load_network` reads it back.
    Raises:
        ConfigError: the output directory exists, or options that are out of range or do not go together.
        DataError: no such network or data, or data that do not suit the network.
        GraphError, UnsupportedOpError: an exported network that cannot be traced.
    """
    from lilliput.jobs import quantize_report
    from lilliput.jobs.quantize_subject import load_trial

    asked_method(config, config.skip)  # refuses what no method takes before anything is made
    with Run.create(config.out, job="quantize", config=config, seed=config.seed, resume=config.resume) as run:
        with run.step("load network") as step:
            trial = load_trial(config)
            known = {"digest": trial.digest, "inputs": trial.inputs}
            if step.done and step.result != known:
                raise ConfigError(
                    f"{run.path} cannot be resumed: the network or the data have changed since it was begun; "
                    f"remove {run.path} to start anew"
                )
            step.save(known)
        made = _quantize(config, run, trial)
        _record(run, config, made)
        quantize_report.write(run, config, made)
    return run


def show(config: QuantizeConfig, run: Run) -> None:
    """Print the verdict, the figures under it, and where the file and the report are."""
    from lilliput.evidence.numbers import amount

    assert run.report is not None
    print(run.report.verdict)
    for name in run.report.highlights:
        each = run.evidence[name]
        print(f"  {name:<28} {amount(each.value, each.unit)} ({each.how})")
    print(f"network: {run.path / 'artifacts' / _FILE}")
    print(f"report: {run.path / 'report.html'}")


def load_network(path: str) -> QuantizedModel:
    """The quantized network of a finished run; what it was made from must still be where it was.

    Raises:
        DataError: no such run, or the network's layers are others by now.
    """
    from dataclasses import fields
    from pathlib import Path

    from lilliput.jobs.quantize_subject import load_trial
    from lilliput.quantize import load_quantized

    run = Run.load(path)
    if run.job != "quantize":
        raise DataError(f"{path}: is a run of '{run.job}'; give one of quantize")
    known = {each.name: run.config[each.name] for each in fields(QuantizeConfig) if each.name in run.config}
    config = QuantizeConfig(**{**known, "skip": tuple(known["skip"])})
    return load_quantized(Path(path) / "artifacts" / _FILE, like=load_trial(config).model)


def _quantize(config: QuantizeConfig, run: Run, trial: Trial) -> Quantized:
    import torch

    from lilliput.quantize import compare, load_quantized, save_quantized
    from lilliput.quantize import quantize as pack

    skip = (*config.skip, *trial.skip)
    path = run.artifact(_FILE)
    with run.step("quantize") as step:
        if not step.done:
            packed = pack(trial.model, asked_method(config, skip))
            save_quantized(packed, path)
            back = load_quantized(path, like=trial.model)
            first = trial.batches[0] if isinstance(trial.batches[0], tuple) else (trial.batches[0],)
            with torch.no_grad():
                is_same = torch.equal(packed(*first), back(*first))
            step.save(
                {
                    "weights": packed.quantized_weight_count,
                    "bits": packed.stored_bits_per_weight(),
                    "bytes": path.stat().st_size,
                    "loads_back": is_same,
                }
            )
    with run.step("compare") as step:
        if not step.done:
            methods, late = compared_methods(config, trial, run.result("quantize")["bits"])
            table = compare(trial.model, methods, trial.batches, with_rivals=False, labels=trial.labels)
            rows = [
                Row(
                    row.name, _family(method), row.storage, row.bits_per_weight, row.file_bytes, row.weight_error,
                    row.output_error, row.agreement, row.accuracy, row.quantize_seconds,
                )
                for method, row in zip(methods, table.rows, strict=True)
            ]  # fmt: skip
            step.save(
                {
                    "rows": [asdict(row) for row in rows],
                    "float": [table.float_bytes, table.accuracy],
                    "outputs": table.outputs,
                    "late": late,
                }
            )
    found, file = run.result("compare"), run.result("quantize")
    return Quantized(
        trial, [Row(**row) for row in found["rows"]], found["float"][0], found["float"][1], file["weights"],
        file["bytes"], found["outputs"], found["late"],
    )  # fmt: skip


def _family(method: Any) -> str:
    from lilliput.jobs.quantize_methods import FAMILIES

    return FAMILIES[type(method).__name__]


def _record(run: Run, config: QuantizeConfig, made: Quantized) -> None:
    asked, inputs, count = made.asked, made.trial.inputs, made.outputs
    file = run.result("quantize")
    run.record(
        Evidence("weights.quantized", made.weights, "weights", "counted", source="tied ones once"),
        Evidence("bits.per_weight", asked.bits_per_weight, "bits", "counted", source="codes, clusters, steps and starts, as in the file"),
        Evidence("file.bytes", made.file_bytes, "bytes", "measured", n=1, source=f"artifacts/{_FILE}, the whole network"),
        Evidence("file.loads_back", file["loads_back"], "", "measured", n=1, source="to outputs of the same bits"),
        Evidence("float.bytes", made.float_bytes, "bytes", "counted", source="the float network's state, tied tensors once"),
        Evidence("error.weights", asked.weight_error, "", "measured", n=made.weights, source="root of squares, relative"),
        Evidence("error.outputs", asked.output_error, "", "measured", n=count, source=f"root of squares, relative; {inputs}"),
        Evidence("agreement", asked.agreement, "share", "measured", n=count, source=f"largest output is the float network's; {inputs}"),
        Evidence("quantize.seconds", asked.seconds, "seconds", "measured", n=1, source="process time"),
    )  # fmt: skip
    if made.float_accuracy is not None:
        run.record(
            Evidence("accuracy.float", made.float_accuracy, "share", "measured", n=count, source=inputs),
            Evidence("accuracy.quantized", asked.accuracy, "share", "measured", n=count, source=inputs),
        )
