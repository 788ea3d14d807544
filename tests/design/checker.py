"""What a structure costs and which rules it breaks, counted layer by layer without the code under test."""

from dataclasses import dataclass, field
from math import exp, log

from lilliput.design import SearchSpace, Structure
from lilliput.evidence import Budget


@dataclass
class Tally:
    """Running sums over the convolutions of a network."""

    side: int
    reference_macs: int = 0
    reference_params: int = 0
    macs: int = 0
    params: int = 0
    flash_bytes: int = 0
    log_widths: float = 0.0
    depth: int = 0
    stage_ends: list[tuple[int, float]] = field(default_factory=list)

    def conv(self, cin: int, cout: int, kernel: int, stride: int = 1, groups: int = 1, is_layer: bool = True) -> None:
        if is_layer:
            self.log_widths += log(cin * kernel**2 / groups)
            self.depth += 1
        out = -(-self.side // stride)
        weights = cout * (cin // groups) * kernel**2
        self.macs += out**2 * weights
        self.reference_macs += out**2 * (weights + 3 * cout)
        self.params += weights + 2 * cout
        self.reference_params += weights + 2 * cout
        self.flash_bytes += weights + 12 * cout
        if is_layer:
            self.side = out


def tally(structure: Structure, image_size: int, num_classes: int) -> Tally:
    """Of a network of K1KXK1, K1DWK1 or KX blocks."""
    t = Tally(image_size)
    t.conv(structure.channels, structure.stem, 3, structure.stem_stride)
    channels = structure.stem
    for block in structure.blocks:
        if block.stride == 2:
            t.stage_ends.append((t.depth, t.log_widths))
        for index in range(block.layers):
            stride, side = (block.stride if index == 0 else 1), t.side
            if block.kind.name == "KX":
                t.conv(channels, block.out, block.kernel, stride)
            else:
                groups = block.mid if block.kind.name == "K1DWK1" else 1
                t.conv(channels, block.mid, 1)
                t.conv(block.mid, block.mid, block.kernel, stride, groups)
                t.conv(block.mid, block.out, 1)
                has_pool = block.kind.name == "K1KXK1" or channels == block.out
                t.reference_macs += side**2 * channels if stride == 2 and has_pool else 0
                if block.kind.name == "K1KXK1" and index == 0:
                    t.conv(channels, block.out, 1, is_layer=False)
            channels = block.out
    t.stage_ends.append((t.depth, t.log_widths))
    t.macs += channels * num_classes
    t.params += (channels + 1) * num_classes
    t.flash_bytes += (channels + 12) * num_classes
    return t


def violations(structure: Structure, space: SearchSpace, budget: Budget, rho: float) -> list[str]:
    """Everything that a structure breaks of a space of the kinds above and of a budget, memory aside."""
    found, step = [], space.channel_step
    side = -(-space.image_size // structure.stem_stride)
    before = structure.stem
    if not space.stem_min <= structure.stem <= space.stem_max or structure.stem % step:
        found.append("stem")
    for number, block in enumerate(structure.blocks):
        low, high = (max(step, step * round(block.out * ratio / step)) for ratio in space.mid_ratio)
        largest = space.first_layers_max if number == 0 else space.layers_max
        rules = {
            "stride": block.stride == space.strides[number + 1],
            "kernel": block.kernel in space.kernels and (1.5 * block.kernel <= side or block.kernel == min(space.kernels) <= side),
            "monotone": number == 0 or block.out >= before,
            "growth": block.out <= space.growth_max * before,
            "steps": block.out % step == 0 and (block.kind.name == "KX" or block.mid % step == 0),
            "mid": block.kind.name == "KX" or low <= block.mid <= high,
            "layers": 1 <= block.layers <= largest,
            "width": block.out <= space.out_max,
        }  # fmt: skip
        found += [f"{name} of super block {number}" for name, holds in rules.items() if not holds]
        before, side = block.out, -(-side // block.stride)
    t = tally(structure, space.image_size, space.num_classes)
    macs, params = (t.reference_macs, t.reference_params) if space.counter == "reference" else (t.macs, t.params)
    worst = max(depth / exp(total / depth) for depth, total in t.stage_ends)
    for name, need, ceiling in (
        ("macs", macs, budget.macs),
        ("params", params, budget.params),
        ("flash", t.flash_bytes, budget.flash_bytes),
        ("rho", worst, rho),
    ):
        if ceiling is not None and need > ceiling * (1 + 1e-12):
            found.append(f"{name} {need} > {ceiling}")
    return found
