"""From a budget to an architecture: solve, compare with more and less of each budget, report."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from lilliput.errors import BudgetError, ConfigError
from lilliput.evidence import Budget, Evidence, Run

if TYPE_CHECKING:
    from lilliput.design import Design, Request, SearchSpace, TradeOff

_DEFAULT_OUT = "runs/design"


@dataclass(frozen=True, kw_only=True)
class DesignConfig:
    """Find a network for a budget by mathematical programming (DeepMAD), in seconds and without training.

    Examples:
        lilliput design --macs 1.82G --params 11.69M --rho 0.3 --image-size 224
        lilliput design --macs 20M --flash 400KB --sram 96KB --rho 0.5 --image-size 96 --classes 2 --out runs/chip
        lilliput design --macs 20M --flash 400KB --sram 48KB --rho 0.5 --resolution auto --image-size 128 --image stream
    """

    out: str | None = None
    """Directory of the run; it must not exist yet. If left out: runs/design, or the next free runs/design-2, -3, ..."""
    macs: str | None = None
    """Most multiply-accumulates for one image, as 1.82G: K, M and G are powers of 1000."""
    params: str | None = None
    """Most parameters, as 11.69M."""
    sram: str | None = None
    """Most bytes of SRAM on a chip at int8: activations and kernels' working memory; KB is 1024 bytes."""
    flash: str | None = None
    """Most bytes of flash on a chip at int8: weights and other constants; code comes on top."""
    rho: float = 0.3
    """Largest effectiveness (depth over mean width) at the end of any stage: 0.3 is usual for bottlenecks, 0.5 for inverted residuals."""
    image_size: int = 224
    """Side of the square input in pixels."""
    resolution: Literal["given", "auto"] = "given"
    """auto: the design may choose a smaller input, three quarters or half of image_size."""
    channels: int = 3
    """Of the input image."""
    classes: int = 1000
    """Of the classifier."""
    space: Literal["auto", "bottleneck", "inverted-residual", "inverted-residual-se", "plain"] = "auto"
    """Kind of block; auto is inverted-residual where SRAM or flash is given, else bottleneck."""
    strides: tuple[int, ...] = ()
    """Of the stem and of each super block, 1 or 2; if left out, usual ones for the input."""
    kernels: tuple[int, ...] = ()
    """Kernels to choose from, odd; if left out, those of the published space."""
    channel_step: int | None = None
    """Widths are multiples of it; if left out, 8, or 4 where SRAM or flash is given."""
    alpha: tuple[float, ...] = ()
    """Weight of each resolution stage; if left out, 1 for each and 8 for the last."""
    depth_penalty: Literal["paper", "reference", "all"] = "paper"
    """What uneven depths cost: exp of the variance from the second super block on, as the authors' code computes it, or of all depths."""
    counter: Literal["auto", "reference", "exact"] = "auto"
    """How macs and params are counted: as the authors' code (bottleneck), or of the built network (all others)."""
    patches: Literal["auto", "none"] = "auto"
    """Whether the first layers may run tile by tile where SRAM binds; halos are charged."""
    image: Literal["resident", "stream"] = "resident"
    """Under patches: the whole input stays in SRAM, or comes in tile by tile."""
    redistribute: bool = False
    """Inverted residuals only: before an eighth of the image's side, windows above 1x1 only where a stride needs them: smaller halos."""
    curves: bool = True
    """Solve again with half to twice of each budget and draw what that changes."""
    time_limit: float | None = None
    """CPU seconds for each solve; if left out, as long as it takes (about 5)."""
    jobs: int = -1
    """Processes for independent solves; -1 is one a core."""
    seed: int = 0
    """Of starts and roundings."""
    resume: bool = False
    """Continue an interrupted run of the same config."""
    quiet: bool = False
    """Print nothing but the result."""

    def __post_init__(self) -> None:
        budget = self.budget()
        if budget == Budget():
            raise ConfigError("no budget: give at least one of --macs, --params, --sram, --flash")
        for name, least in (("image_size", 8), ("channels", 1), ("classes", 1), ("seed", 0)):
            if getattr(self, name) < least:
                raise ConfigError(f"{name}={getattr(self, name)}: must be {least} or more; try {name}={least}")
        if self.seed >= 2**32:
            raise ConfigError(f"seed={self.seed}: must be below 2**32 (4,294,967,296); try seed=0")
        if self.jobs == 0:
            raise ConfigError("jobs=0: must be a number of processes, or -1 for one a core; try jobs=1")
        if self.out == "":
            raise ConfigError("out='': must name a directory; try out='runs/design'")

    def budget(self) -> Budget:
        """The ceilings as numbers."""
        return Budget.of(macs=self.macs, params=self.params, sram=self.sram, flash=self.flash)

    @property
    def is_for_a_chip(self) -> bool:
        """Whether SRAM or flash is given."""
        return self.sram is not None or self.flash is not None


def design(config: DesignConfig) -> Run:
    """Do the whole job.

    Returns:
        The finished run; ``artifacts/design.json`` is read by ``Design.from_json``.
    Raises:
        BudgetError: nothing fits; names what binds and how much all budgets would have to grow.
        ConfigError: the output directory exists, or an option is out of range.
    """
    from lilliput.design import Design
    from lilliput.jobs import design_report

    requests = _requests(config)  # refuses what cannot be before anything is made
    with Run.create(_out(config), job="design", config=config, seed=config.seed, resume=config.resume) as run:
        with run.step("solve") as step:
            if not step.done:
                step.save({"design": _best(config, requests).to_json()})
            found = Design.from_json(step.result["design"])
        run.artifact("design.json").write_text(found.to_json() + "\n")
        if not config.quiet:
            print(found.table(), flush=True)
        curves: tuple[TradeOff, ...] = ()
        if config.curves:
            with run.step("trade-offs") as step:
                if not step.done:
                    step.save(_curves(config, found))
                curves = _read_curves(step.result)
        _record(run, found)
        design_report.write(run, found, curves)
    return run


def show(config: DesignConfig, run: Run) -> None:
    """Print the verdict and where everything is."""
    assert run.report is not None
    print(run.report.verdict)
    print(f"design: {run.path / 'artifacts' / 'design.json'}")
    print(f"report: {run.path / 'report.html'}")


def _out(config: DesignConfig) -> str:
    """The directory asked for, or the next free default."""
    if config.out is not None:
        return config.out
    number, name = 1, _DEFAULT_OUT
    while Path(name).exists() or (Path(f"{name}.partial").exists() and not config.resume):
        number += 1
        name = f"{_DEFAULT_OUT}-{number}"
    return name


def _requests(config: DesignConfig) -> list[list[Request]]:
    """Groups in order of preference: stride patterns; within a group, resolutions, of which the best objective wins."""
    from lilliput.design import Request
    from lilliput.design.chip import resolutions

    sizes = resolutions(config.image_size) if config.resolution == "auto" else (config.image_size,)
    groups = []
    for strides in _strides(config):
        spaces = [_space(config, size, strides) for size in sizes]
        groups.append(
            [
                Request(
                    space=space,
                    budget=config.budget(),
                    rho=config.rho,
                    alpha=config.alpha or None,
                    depth_penalty=config.depth_penalty,
                    patches="auto" if config.patches == "auto" else None,
                    image=config.image,
                    seed=config.seed,
                    time_limit=config.time_limit,
                )
                for space in spaces
            ]
        )
    return groups


def _strides(config: DesignConfig) -> list[tuple[int, ...]]:
    from lilliput.design.chip import chip_strides

    if config.strides:
        return [config.strides]
    return list(chip_strides(config.image_size)) if config.image_size < 192 else [(2, 2, 2, 2, 1, 2)]


def _space(config: DesignConfig, image_size: int, strides: tuple[int, ...]) -> SearchSpace:
    from lilliput.design import SearchSpace

    kind = config.space
    if kind == "auto":
        kind = "inverted-residual" if config.is_for_a_chip else "bottleneck"
    options: dict[str, Any] = {"channels": config.channels, "num_classes": config.classes}
    options["channel_step"] = config.channel_step or (4 if config.is_for_a_chip else 8)
    if config.kernels:
        options["kernels"] = config.kernels
    if config.counter != "auto":
        options["counter"] = config.counter
    if config.is_for_a_chip and kind.startswith("inverted"):
        options["stem_min"] = options["channel_step"]
    if config.redistribute and not kind.startswith("inverted"):
        raise ConfigError(
            f"redistribute=True with space='{kind}': only inverted residuals have it; try space='inverted-residual'"
        )
    if kind == "bottleneck":
        return SearchSpace.bottleneck(image_size, strides, **options)
    if kind == "plain":
        return SearchSpace.plain(image_size, strides, **options)
    return SearchSpace.inverted_residual(
        image_size, strides, squeeze=kind.endswith("se"), redistribute=config.redistribute, **options
    )


def _best(config: DesignConfig, groups: list[list[Request]]) -> Design:
    from lilliput.design import Design, sweep

    nearest: BudgetError | None = None
    for group in groups:
        found = sweep(group, n_jobs=config.jobs if len(group) > 1 else 1)
        designs = [each for each in found if isinstance(each, Design)]
        if designs:
            return max(designs, key=lambda each: each.objective)
        nearest = next(each for each in found if isinstance(each, BudgetError))
    assert nearest is not None
    raise nearest


def _curves(config: DesignConfig, found: Design) -> list[dict[str, Any]]:
    """One budget after the other, with a bar."""
    from rich.console import Console
    from rich.progress import Progress

    from lilliput.design import trade_offs

    rows = []
    with Progress(console=Console(stderr=True), disable=config.quiet) as progress:
        task = progress.add_task("trade-offs", total=len(found.needs))
        for name in found.needs:
            limit = min(config.time_limit or 1.0, 1.0)
            (curve,) = trade_offs(found, names=[name], time_limit=limit, n_jobs=config.jobs)
            rows.append({"name": curve.name, "points": [list(point) for point in curve.points]})
            progress.advance(task)
    return rows


def _read_curves(rows: list[dict[str, Any]]) -> tuple[TradeOff, ...]:
    from lilliput.design import TradeOff

    return tuple(TradeOff(row["name"], tuple((factor, value) for factor, value in row["points"])) for row in rows)


def _record(run: Run, found: Design) -> None:
    cost, chip, counter = found.cost(), found.chip_cost(), found.space.counter
    patched = "" if found.patches is None else f", {found.patches}"
    run.record(
        Evidence("objective", found.objective, "", "counted", source="entropy less the depth penalty", detail="a proxy, not accuracy"),
        Evidence("relaxation", found.relaxation, "", "counted", source="best of several starts; not a proven bound"),
        Evidence("gap", max(0.0, found.gap), "share", "counted", source="objective below the relaxation"),
        Evidence("rho", found.score.rho, "", "counted", source="largest over the stages"),
        Evidence("cost.macs", cost.macs, "MACs", "counted", source="built network: convolutions and classifier"),
        Evidence("cost.params", cost.params, "parameters", "counted", source="built network"),
        Evidence("cost.live_memory", cost.sram_bytes, "bytes", "counted", source="live activations of the graph at 8 bits, in place"),
        Evidence("reference.macs", found.score.macs, "MACs", "counted", source="the authors' counter"),
        Evidence("reference.params", found.score.params, "parameters", "counted", source="the authors' counter"),
        Evidence("chip.macs", chip.macs, "MACs", "counted", source=f"at int8 on a chip{patched}"),
        Evidence("chip.sram", chip.sram_bytes, "bytes", "counted", source=f"activations and kernels' memory at int8{patched}"),
        Evidence("chip.flash", chip.flash_bytes, "bytes", "counted", source="constants at int8; code comes on top"),
        Evidence("solve.cpu_seconds", found.cpu_seconds, "seconds", "measured", n=1, source=f"budget counted as '{counter}'"),
    )  # fmt: skip
