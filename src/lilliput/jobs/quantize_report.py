"""The report of a low-bit network, as sections of data: what it is, and every method against the bits that it stores."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lilliput.evidence import Bar, Bars, EvidenceTable, Figure, Run, Section, Table, Text, charts

if TYPE_CHECKING:
    from lilliput.jobs.quantize import QuantizeConfig, Quantized, Row

_MOST_BITS_DRAWN = 12


def write(run: Run, config: QuantizeConfig, made: Quantized) -> None:
    """Write the run's report."""
    asked = made.asked
    accuracy = "" if asked.accuracy is None else f", accuracy {asked.accuracy:.1%} (float {made.float_accuracy:.1%})"
    better = beaten_by(asked, made.rows)
    standing = "no other method here has a smaller error at as few bits"
    if better is not None:
        standing = f"{better.name} has a smaller error ({better.output_error:.4f}) at {better.bits_per_weight:.2f} bits"
    run.write_report(
        [_network(run, made), _methods(config, made)],
        title=f"{made.trial.name} at {asked.bits_per_weight:.2f} bits a weight",
        verdict=f"{asked.name}: {made.file_bytes:,} of {made.float_bytes:,} bytes, agrees with the float network on "
        f"{asked.agreement:.1%}{accuracy}, relative error of outputs {asked.output_error:.4f}; {standing}",
        holds=True if better is None else None,
        highlights=[
            "bits.per_weight",
            "file.bytes",
            "agreement",
            "error.outputs" if asked.accuracy is None else "accuracy.quantized",
        ],
    )


def beaten_by(row: Row, rows: list[Row]) -> Row | None:
    """The row with the smallest error of outputs among those of no more bits and a smaller error, if there is one."""
    better = [
        each
        for each in rows
        if each.bits_per_weight <= row.bits_per_weight and each.output_error < row.output_error
    ]  # fmt: skip
    return min(better, key=lambda each: each.output_error, default=None)


def _network(run: Run, made: Quantized) -> Section:
    bars = [
        Bar("this file", made.file_bytes, made.float_bytes, "bytes"),
        *(
            Bar(f"{row.name}, {row.storage}", row.file_bytes, made.float_bytes, "bytes")
            for row in sorted(made.rows[1:], key=lambda row: row.file_bytes)[:5]
        ),
    ]
    return Section(
        "network",
        "The network",
        f"{made.weights:,} weights are packed; biases, norms and whatever was skipped stay float. Tried on {made.trial.inputs}.",
        [
            EvidenceTable("The figures", list(run.evidence)),
            Bars("Bytes of the whole network, beside the float one", bars),
        ],
    )


def _methods(config: QuantizeConfig, made: Quantized) -> Section:
    rows = sorted(made.rows, key=lambda row: (row.bits_per_weight, row.output_error))
    has_accuracy = made.float_accuracy is not None
    columns = [
        "method",
        "storage",
        "bits a weight",
        "file bytes",
        "error of weights",
        "error of outputs",
        "agreement %",
    ]
    columns += ["accuracy %"] if has_accuracy else []
    cells: list[list[Any]] = [
        [
            row.name + (" (this file)" if row is made.asked else ""),
            row.storage,
            round(row.bits_per_weight, 3),
            row.file_bytes,
            round(row.weight_error, 4),
            round(row.output_error, 4),
            round(100 * row.agreement, 2),
            *([round(100 * row.accuracy, 2)] if row.accuracy is not None else []),
            "yes" if beaten_by(row, rows) is None else "",
        ]
        for row in rows
    ]
    blocks: list[Any] = [
        _figure(made, rows, "output_error", "relative error of outputs", "Error of outputs", 1),
        _figure(made, rows, "agreement", "agreement, %", "Agreement with the float network", 100),
    ]
    if has_accuracy:
        blocks.append(_figure(made, rows, "accuracy", "accuracy, %", "Accuracy", 100))
    blocks.append(Table("All methods by the bits that they store", [*columns, "best so far"], cells))
    if made.late:
        blocks.append(
            Text(
                f"Left out, as the exact table would take too long on {made.weights:,} weights: {', '.join(made.late)}."
            )
        )
    said = "all methods at 2, 3, 4 and 8 bits" if config.sweep else "the method and others that store about as much"
    noise = ""
    if has_accuracy:
        noise = f" An accuracy of {made.outputs:,} inputs moves by chance: rank by the error."
    return Section(
        "methods",
        "Against the bits stored",
        f"Here: {said}. Bits are those of the file, with steps, starts and what names the cluster, for each packed weight. A split of "
        f"2-bit codes stores 3.6 or more, so it is held against methods of 3 and 4 bits. Best so far: nothing of as few bits has a "
        f"smaller error of outputs.{noise}",
        blocks,
    )


def _figure(made: Quantized, rows: list[Row], field: str, label: str, title: str, factor: int) -> Figure:
    series: dict[str, list[tuple[float, float]]] = {}
    for row in rows:
        if row.bits_per_weight > _MOST_BITS_DRAWN and row is not made.asked:
            continue
        series.setdefault(row.family, []).append((row.bits_per_weight, factor * getattr(row, field)))
    asked = made.asked.bits_per_weight, factor * getattr(made.asked, field)
    words = "; ".join(
        f"{name}: {', '.join(f'{value:.4g} at {bits:.2f} bits' for bits, value in points)}"
        for name, points in series.items()
    )
    return Figure(
        charts.lines(series, "bits stored for each weight", label, x_scale="log", mark=asked),
        title,
        words,
        f"The ring is this file. Methods of more than {_MOST_BITS_DRAWN} bits are in the table alone.",
    )
