import json

import pytest

from design.published import PUBLISHED
from lilliput.design import Structure, SuperBlock
from lilliput.errors import ConfigError, DataError

STEM = "{'class': 'ConvKXBNRELU', 'in': 3, 'out': 32, 's': 2, 'k': 3}"
BLOCK = "{'class': 'SuperResK1KXK1', 'in': 32, 'out': 64, 'btn': 16, 's': 2, 'k': 5, 'L': 2}"


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_text_gives_its_numbers_back(name):
    published = PUBLISHED[name]
    structure = Structure.from_reference(published.text())
    assert (structure.stem, structure.head, structure.channels) == (published.stem, published.head, 3)
    rows = tuple((b.out, b.mid, b.kernel, b.stride, b.layers) for b in structure.blocks)
    assert rows == published.rows
    assert {block.kind.name for block in structure.blocks} == {published.kind}
    assert structure.layers == published.layers


def test_a_bare_list_of_blocks_is_read_too():
    assert Structure.from_reference(f"[{STEM}, {BLOCK}]").blocks == (
        SuperBlock(out=64, mid=16, kernel=5, stride=2, layers=2),
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[", "not a Python literal"),
        ("__import__('os').getcwd()", "not a Python literal"),
        ("(" * 5000, "not a Python literal"),
        ("{'structures': []}", "has keys \\['structures'\\]; needs a list 'best_structures'"),
        ("{'best_structures': []}", "needs a list 'best_structures'"),
        ("{1: 2, 'a': 3}", "needs a list 'best_structures'"),
        (f"[{STEM}]", "at least two blocks"),
        ("7", "at least two blocks"),
        (f"[{BLOCK}, {BLOCK}]", "block 0: class 'SuperResK1KXK1' where a 'ConvKXBNRELU' must be"),
        (f"[{STEM}, 5]", "block 1: 5 must be a dict with a 'class'"),
        (
            f"[{STEM}, {BLOCK.replace('K1KXK1', 'KXKX')}]",
            "block 1: unknown class 'SuperResKXKX'; known are .*SuperResK1KXK1",
        ),
        (f"[{STEM}, {BLOCK.replace('32', '40')}]", "block 1: in=40, but the block before it puts out 32 channels"),
        (
            f"[{STEM}, {BLOCK.replace(chr(39) + 'btn' + chr(39) + ': 16, ', '')}]",
            "block 1: no 'btn'; needs in, out, btn",
        ),
        (f"[{STEM}, {BLOCK.replace('64', '64.5')}]", "block 1: out=64.5 must be a whole number"),
        (f"[{STEM}, {BLOCK.replace('64', 'True')}]", "block 1: out=True must be a whole number"),
        (f"[{STEM}, {BLOCK.replace('5,', '4,')}]", "block 1: super block kernel=4: must be odd"),
        (f"[{STEM}, {BLOCK.replace(': 2, ', ': 3, ')}]", "block 1: super block stride=3: must be 1 or 2"),
        (f"[{STEM}, {STEM}, {BLOCK}]", "block 1: class 'ConvKXBNRELU' between super blocks"),
        (f"[{STEM}, {BLOCK}, {STEM}]", "block 2: the last convolution has k=3, s=2; must be k=1, s=1"),
        ("1" * 100_001, "100,001 characters; the longest read is 100,000"),
    ],
)
def test_a_reference_text_that_is_wrong_says_where(text, message):
    with pytest.raises(DataError, match=message):
        Structure.from_reference(text)


@pytest.mark.parametrize("name", PUBLISHED)
def test_json_gives_the_same_structure_back(name):
    structure = Structure.from_reference(PUBLISHED[name].text())
    assert Structure.from_json(structure.to_json()) == structure


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: data.pop("format"), 'without "format": "lilliput.structure"'),
        (lambda data: data.update(version=9), "format version 9; this release reads version 1"),
        (lambda data: data.update(blocks=3), "'blocks' must be a list"),
        (lambda data: data.update(blocks=[]), "structure without super blocks"),
        (lambda data: data.update(colour=1), "structure: unknown 'colour'"),
        (lambda data: data.pop("stem"), "structure: no 'stem'"),
        (lambda data: data.update(stem=0), "stem=0: must be at least 1"),
        (lambda data: data["blocks"][1].update(layers="2"), "blocks\\[1\\]: layers='2' must be a whole number"),
        (
            lambda data: data["blocks"][1].update(kind="KXKX"),
            "blocks\\[1\\]: super block kind 'KXKX': must be one of K1KXK1",
        ),
        (lambda data: data["blocks"][1].update(layers=0), "blocks\\[1\\]: super block layers=0"),
    ],
)
def test_json_that_is_wrong_says_where(change, message):
    data = json.loads(Structure.from_reference(PUBLISHED["DeepMAD-R18"].text()).to_json())
    change(data)
    with pytest.raises(DataError, match=message):
        Structure.from_json(json.dumps(data))


def test_what_is_no_json_is_said_to_be_none():
    with pytest.raises(DataError, match="not JSON"):
        Structure.from_json("{")


def test_a_structure_made_by_hand_is_checked():
    block = SuperBlock(out=8, mid=8, kernel=3, stride=1, layers=1)
    for fields, message in (
        ({"stem_kernel": 2}, "stem_kernel=2: must be odd"),
        ({"stem_stride": 4}, "stem_stride=4: must be 1 or 2"),
        ({"head": -1}, "head=-1"),
    ):
        with pytest.raises(ConfigError, match=message):
            Structure(stem=8, blocks=(block,), **fields)
