"""Networks of the reference implementation, as bare numbers, and what its own scorer says of them.

Source: github.com/alibaba/lightweight-neural-architecture-search, configs/classification/models. Rows are out, bottleneck, kernel, stride,
layers. The scores were measured by running the reference's scorer on its structure files.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Published:
    kind: str
    image_size: int
    stem: int
    rows: tuple[tuple[int, int, int, int, int], ...]
    head: int
    entropy: float
    objective: float
    layers: int

    def text(self) -> str:
        """In the reference's file format."""
        blocks = [{"class": "ConvKXBNRELU", "in": 3, "out": self.stem, "s": 2, "k": 3}]
        width = self.stem
        for out, bottleneck, kernel, stride, layers in self.rows:
            blocks.append(
                {"class": f"SuperRes{self.kind}", "in": width, "out": out, "btn": bottleneck, "s": stride, "k": kernel, "L": layers,
                 "inner_class": f"Res{self.kind}"}
            )  # fmt: skip
            width = out
        if self.head:
            blocks.append({"class": "ConvKXBNRELU", "in": width, "out": self.head, "s": 1, "k": 1})
        return f"{{ 'best_structures': [{blocks!r}],\n'space_arch': 'CnnNet'}}  \n"


PUBLISHED = {
    "DeepMAD-R18": Published(
        "K1KXK1", 224, 32,
        ((96, 40, 5, 2, 1), (384, 40, 5, 2, 6), (384, 64, 5, 2, 9), (1024, 104, 3, 1, 10), (672, 104, 5, 2, 12)),
        0, 32120.20, 32085.40, 115,
    ),
    "DeepMAD-R34": Published(
        "K1KXK1", 224, 24,
        ((128, 24, 5, 2, 1), (512, 48, 5, 2, 10), (896, 88, 5, 2, 13), (1024, 104, 5, 1, 11), (616, 128, 5, 2, 14)),
        0, 43142.67, 43107.87, 148,
    ),
    "DeepMAD-R50": Published(
        "K1KXK1", 224, 32,
        ((128, 40, 5, 2, 1), (512, 48, 5, 2, 11), (872, 88, 5, 2, 12), (1024, 104, 5, 1, 13), (1232, 120, 5, 2, 15)),
        0, 48919.28, 48884.47, 157,
    ),
    "DeepMAD-29M-224": Published(
        "K1DWSEK1", 224, 40,
        ((40, 240, 5, 1, 2), (85, 512, 5, 2, 4), (134, 800, 5, 2, 6), (201, 1208, 5, 2, 6), (312, 1872, 5, 2, 5)),
        1792, 11915.37, 11870.70, 71,
    ),
    "DeepMAD-29M-288": Published(
        "K1DWSEK1", 288, 40,
        ((61, 368, 5, 2, 4), (96, 576, 5, 2, 4), (145, 872, 5, 2, 5), (217, 1304, 5, 1, 6), (328, 1968, 5, 2, 4)),
        1792, 11705.14, 11682.88, 71,
    ),
    "DeepMAD-50M": Published(
        "K1DWSEK1", 224, 48,
        ((112, 672, 5, 2, 7), (168, 1008, 5, 2, 9), (252, 1512, 5, 2, 7), (378, 2272, 5, 2, 3), (576, 3456, 3, 1, 1)),
        2048, 14833.20, 14644.16, 83,
    ),
    "DeepMAD-89M": Published(
        "K1DWSEK1", 224, 56,
        ((136, 816, 5, 2, 10), (204, 1224, 5, 2, 9), (326, 1952, 5, 2, 7), (490, 2944, 5, 2, 4), (744, 4464, 3, 1, 1)),
        2560, 18020.38, 17746.37, 95,
    ),
    "Zen-R18-like": Published(
        "K1KXK1", 224, 40,
        ((256, 64, 3, 2, 2), (360, 88, 3, 2, 3), (512, 128, 3, 2, 6), (512, 176, 3, 2, 4), (512, 176, 3, 1, 12)),
        0, 21875.75, 21576.3, 82,
    ),
}  # fmt: skip
