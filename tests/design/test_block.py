import json

import pytest
import torch

from lilliput.design import BLOCKS, BlockType, ConvRow, Structure, SuperBlock
from lilliput.errors import ConfigError, DataError

BASIC = BlockType(
    name="basic",
    convs=(
        ConvRow(inputs="in", outputs="mid", has_stride=True),
        ConvRow(inputs="mid", outputs="out", has_activation=False),
    ),
    shortcut="projection",
)


def test_a_block_of_ones_own_goes_to_json_and_back():
    assert BlockType.from_plain(json.loads(json.dumps(BASIC.to_plain()))) == BASIC


@pytest.mark.parametrize("name", BLOCKS)
def test_a_published_block_goes_by_its_name(name):
    assert BLOCKS[name].to_plain() == name
    assert BlockType.from_plain(name) is BLOCKS[name]


@pytest.mark.parametrize("block", [*BLOCKS.values(), BASIC], ids=lambda block: block.name)
@pytest.mark.parametrize("size", [16, 23])
def test_every_block_builds_a_network_that_learns_from_every_parameter(block, size):
    rows = tuple(
        SuperBlock(out=out, mid=24, kernel=3, stride=stride, layers=2, kind=block) for out, stride in ((16, 2), (16, 1))
    )
    network = Structure(stem=16, blocks=rows, stem_stride=1).build(5)
    logits = network(torch.randn(4, 3, size, size))
    logits.square().sum().backward()
    assert logits.shape == (4, 5)
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in network.parameters())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"convs": ()}, "needs a name and at least one convolution"),
        ({"shortcut": "dense"}, "shortcut='dense' must be one of none, same, projection"),
        ({"activation": "gelu"}, "activation='gelu' must be one of relu, relu6"),
        ({"convs": (ConvRow(inputs="in", outputs="out", kernel=2, has_stride=True),)}, "kernel=2 must be odd"),
        (
            {"convs": (ConvRow(inputs="in", outputs="out", is_depthwise=True, has_stride=True),)},
            "depthwise from 'in' to 'out'; must have one width",
        ),
        (
            {"convs": (ConvRow(inputs="in", outputs="mid", has_stride=True), ConvRow(inputs="out", outputs="out"))},
            "convolution 0 puts out 'mid', but the next takes 'out'",
        ),
        ({"convs": (ConvRow(inputs="in", outputs="mid", has_stride=True),)}, "must go from 'in' to 'out'"),
        ({"convs": (ConvRow(inputs="in", outputs="out"),)}, "exactly one convolution must have has_stride=True"),
    ],
)
def test_a_table_that_is_no_block_is_refused_in_words(change, message):
    with pytest.raises(ConfigError, match=message):
        BlockType(**{"name": "odd", "convs": BASIC.convs, **change})


def test_json_that_is_no_block_says_where():
    with pytest.raises(DataError, match=r"blocks\[3\] kind 'KXKX': must be one of K1KXK1"):
        BlockType.from_plain("KXKX", "blocks[3]")
    with pytest.raises(DataError, match=r"blocks\[3\]: not the table of a block"):
        BlockType.from_plain({"name": "x"}, "blocks[3]")
