"""Linear layers with packed weights against float32 ones, dequantizing, and torchao.

    OMP_NUM_THREADS=1 python benchmarks/lowbit_matmul.py [--torchao DIRECTORY]

Products of one layer at batch 1 and 32, one thread, float32 activations, each through its own module. Times are CPU time of the process,
the least of many calls; ratios are the other's time by ours, above 1 where ours is faster. Outputs are compared with those of the
dequantized weight before clocks start.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
import time
import warnings
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lilliput.quantize import LookupTable, RoundToNearest, SplitConfig, quantize
from lilliput.quantize.lowbit.config import Method
from lilliput.quantize.lowbit.matmul import kernel_name

SIZES = ((1536, 384), (2048, 2048), (4096, 4096))
METHODS: dict[str, Method] = {
    "2 bits, row": RoundToNearest(bits=2),
    "3 bits, row": RoundToNearest(bits=3),
    "4 bits, row": RoundToNearest(bits=4),
    "split, 2 bits, k=3": SplitConfig(fitted=False),
    "table of 16": LookupTable(levels=16, granularity="tensor"),
    "4 bits, groups of 64": RoundToNearest(bits=4, granularity="group", group_size=64),
    "split, groups of 64": SplitConfig(fitted=False, granularity="group", group_size=64),
    "split, dense": SplitConfig(fitted=False, mask_aware=False, storage="dense"),
    "8 bits, row": RoundToNearest(bits=8),
    "split, base 12": SplitConfig(fitted=False, storage="radix"),
}
LARGE = 4096 * 4096  # weights; rounding alone packs so many in little time


def seconds(call: Callable[[], Tensor], budget_seconds: float) -> float:
    """The least CPU time of a call."""
    start = time.process_time()
    call()
    first = time.process_time() - start
    repeats = max(1, int(2e-3 / max(first, 1e-6)))  # of at least 2 ms: the clock has a grain
    best, end = float("inf"), time.process_time() + budget_seconds
    while time.process_time() < end or best == float("inf"):
        start = time.process_time()
        for _ in range(repeats):
            call()
        best = min(best, (time.process_time() - start) / repeats)
    return best


def torchao_layers(layer: nn.Linear) -> dict[int, nn.Module]:
    """The layer at 2 to 4 bits a weight by row, by bits."""
    from torchao.quantization import IntxWeightOnlyConfig, quantize_
    from torchao.quantization.granularity import PerAxis

    result = {}
    for bits in (2, 3, 4):
        model = nn.Sequential(nn.Linear(layer.in_features, layer.out_features))
        model.load_state_dict({"0.weight": layer.weight, "0.bias": layer.bias})
        quantize_(model, IntxWeightOnlyConfig(getattr(torch, f"int{bits}"), granularity=PerAxis(0)))
        result[bits] = model.eval()
    return result


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--torchao", help="directory to import torchao from, where it is not installed")
    parser.add_argument("--seconds", type=float, default=0.15, help="CPU seconds of each time")
    parser.add_argument("--sizes", type=int, nargs="*", default=range(len(SIZES)), help=f"indices into {SIZES}")
    parser.add_argument("--weights", default="", help="only rows whose name holds this")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    if arguments.torchao:
        sys.path.append(arguments.torchao)
    has_torchao = importlib.util.find_spec("torchao") is not None
    print(f"torch {torch.__version__}, kernel {kernel_name('auto')}, {torch.get_num_threads()} thread")
    print("torchao: " + (_torchao_version() if has_torchao else "not installed, and no --torchao: its column is empty"))
    print(
        "\n| layer (out x in), batch | weights | µs | float32 µs | ratio | dequantize µs | ratio | torchao µs | ratio |"
    )
    print("|---|---|---:|---:|---:|---:|---:|---:|---:|")
    lost = []
    for rows, columns in (SIZES[index] for index in arguments.sizes):
        torch.manual_seed(0)
        layer = nn.Linear(columns, rows).eval()
        theirs = torchao_layers(layer) if has_torchao else {}
        ours = {
            name: quantize(nn.Sequential(layer), method)
            for name, method in METHODS.items()
            if arguments.weights in name and (rows * columns < LARGE or isinstance(method, RoundToNearest))
        }
        for batch in (1, 32):
            x = torch.randn(batch, columns)
            dense = seconds(lambda x=x, layer=layer: layer(x), arguments.seconds)
            torchao = {bits: seconds(lambda m=m, x=x: m(x), arguments.seconds) for bits, m in theirs.items()}
            for name, q in ours.items():
                expected = F.linear(x, q.module[0].weight, layer.bias)
                error = float((q(x) - expected).abs().max() / expected.abs().max())
                assert error < 1e-4, f"{name}: outputs differ by {error:.1e}"
                mine = seconds(lambda q=q, x=x: q.module[0](x), arguments.seconds)
                q.use_kernel("torch")
                dequantizing = seconds(lambda q=q, x=x: q.module[0](x), arguments.seconds)
                q.use_kernel("auto")
                peer = torchao.get(int(name[0])) if name.endswith("bits, row") else None
                cells = [f"{rows} x {columns}, {batch}", name, f"{1e6 * mine:,.0f}"]
                for what, other in (("float32", dense), ("dequantizing", dequantizing), ("torchao", peer)):
                    cells += ["", ""] if other is None else [f"{1e6 * other:,.0f}", f"{other / mine:.2f}"]
                    if other is not None and other < mine:
                        lost.append(f"{cells[0]}: {name} is slower than {what}, {mine / other:.2f} times its time")
                print("| " + " | ".join(cells) + " |", flush=True)
    print("\n" + ("\n".join(lost) if lost else "Nothing is slower than its rival."))


def _torchao_version() -> str:
    import torchao

    return str(torchao.__version__)


if __name__ == "__main__":
    main()
