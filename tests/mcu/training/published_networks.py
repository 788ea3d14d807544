"""The three networks of the published training experiments as shapes: facts of their architecture, with weights of our own."""

from mcu.networks import Network

MOBILENET_V2_035 = (
    (None, 3, 1, 8), (48, 3, 2, 8), (48, 3, 1, 8), (48, 3, 2, 16), (96, 3, 1, 16), (96, 3, 1, 16), (96, 3, 2, 24), (144, 3, 1, 24),
    (144, 3, 1, 24), (144, 3, 1, 24), (144, 3, 1, 32), (192, 3, 1, 32), (192, 3, 1, 32), (192, 3, 2, 56), (336, 3, 1, 56),
    (336, 3, 1, 56), (336, 3, 1, 112),
)  # fmt: skip
MCUNET_5FPS = (
    (None, 3, 1, 8), (32, 3, 2, 16), (48, 3, 1, 16), (48, 7, 2, 24), (120, 3, 1, 24), (120, 3, 2, 40), (160, 7, 1, 40), (160, 5, 1, 48),
    (144, 3, 1, 48), (192, 3, 1, 48), (240, 7, 2, 96), (384, 5, 1, 96), (384, 5, 1, 96), (576, 3, 1, 160),
)  # fmt: skip
PROXYLESS_03 = (
    (None, 3, 1, 8), (24, 5, 2, 16), (48, 3, 1, 16), (48, 7, 2, 16), (48, 3, 1, 16), (48, 5, 1, 16), (48, 5, 1, 16), (96, 7, 2, 24),
    (72, 5, 1, 24), (72, 5, 1, 24), (72, 5, 1, 24), (144, 5, 1, 32), (96, 5, 1, 32), (96, 5, 1, 32), (96, 5, 1, 32), (192, 7, 2, 64),
    (384, 7, 1, 64), (192, 7, 1, 64), (192, 7, 1, 64), (384, 7, 1, 96),
)  # fmt: skip
"""Inverted residual blocks: expanded channels (none where the first layer is the depthwise one), kernel, stride, channels."""
BLOCKS = {"mbv2-w0.35": MOBILENET_V2_035, "mcunet-5fps": MCUNET_5FPS, "proxyless-w0.3": PROXYLESS_03}

SCHEMES = {
    "mbv2-w0.35": (
        (16, (36, 39, 40, 41, 42, 45, 48, 49), (1, 1, 0, 1 / 4, 1 / 8, 1 / 8, 1 / 8, 1 / 8), 49.81),
        (20, (32, 33, 36, 39, 41, 42, 45, 48), (1 / 8, 1 / 2, 1 / 2, 1, 1 / 4, 1 / 8, 1 / 8, 1), 73.88),
        (25, (27, 30, 33, 36, 39, 42, 45, 48), (1, 1, 1, 1, 1, 1 / 8, 1 / 2, 1), 99.41),
        (31, (27, 30, 33, 36, 39, 42, 45, 48), (1, 1, 1, 1, 1, 1 / 2, 1, 1), 123.56),
        (34, (27, 30, 33, 36, 39, 42, 45, 48), (1, 1, 1, 1, 1, 1, 1, 1), 138.25),
    ),
    "mcunet-5fps": (
        (20, (23, 24, 27, 30, 33, 39), (0, 1 / 4, 1 / 2, 1 / 2, 0, 0), 49.75),
        (21, (21, 23, 24, 26, 27, 30), (1, 0, 1, 0, 1 / 2, 1), 74.81),
        (22, (21, 24, 27, 30, 36, 39), (1, 1, 1, 1, 1 / 8, 1 / 4), 99.84),
        (24, (21, 24, 27, 30, 33, 39), (1 / 4, 1, 1, 1, 1 / 2, 1 / 2), 124.97),
        (23, (21, 24, 27, 30, 36, 39), (1, 1, 1, 1, 1, 1 / 2), 148.41),
    ),
    "proxyless-w0.3": (
        (21, (39, 42, 44, 45, 50, 51, 54, 57), (1 / 4, 1, 0, 1, 0, 1 / 8, 1 / 4, 1 / 4), 49.66),
        (28, (33, 36, 39, 42, 45, 51, 54, 57), (1 / 2, 1 / 4, 1, 1, 1, 1 / 2, 1 / 4, 1 / 2), 74.88),
        (25, (36, 39, 42, 45, 48, 51, 54, 57), (1, 1 / 2, 1, 1, 1 / 4, 1 / 2, 1, 1), 98.53),
        (32, (36, 39, 42, 45, 48, 51, 54, 57), (1, 1, 1, 1, 1 / 2, 1, 1, 1), 120.25),
        (45, (36, 39, 42, 45, 48, 51, 54, 57), (1, 1, 1, 1, 1, 1, 1, 1), 148.22),
    ),
}  # fmt: skip
"""The published update schemes: bias depth, layers, shares of their input channels, and KiB of extra memory at 128x128."""


def published(name, image=128, classes=10, seed=None):
    """One of the three networks, with a mean, and a linear layer of so many classes."""
    net = Network(name, (image, image, 3), seed)

    def conv(x, out, kernel=1, stride=1, depthwise=False):
        return net.conv(x, out, kernel, stride, depthwise=depthwise, padding=(kernel // 2,) * 4)

    x = conv("x", 16, 3, 2)
    for expanded, kernel, stride, channels in BLOCKS[name]:
        skip = x
        inner = conv(x, expanded) if expanded else x
        x = conv(conv(inner, net.shape(inner)[2], kernel, stride, depthwise=True), channels)
        if net.shape(skip) == net.shape(x) and expanded:
            x = net.add(skip, x)
    net.linear(net.reshape(net.mean(x), net.shape(x)[2]), classes)
    return net.graph()


def ratios_of(qgraph_layers, numbers, shares):
    """Shares by operation name; the published tables also list layers of which nothing is updated."""
    return {qgraph_layers[number].name: share for number, share in zip(numbers, shares, strict=True) if share}
