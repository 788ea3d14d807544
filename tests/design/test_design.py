import json

import pytest
import torch

from lilliput.design import Design, Patches, SearchSpace, solve
from lilliput.errors import DataError
from lilliput.evidence import Budget

SPACE = SearchSpace.inverted_residual(32, (1, 2, 2), (3, 5), 4, stem_min=4, layers_max=4, num_classes=10)


@pytest.fixture(scope="module")
def design() -> Design:
    budget = Budget(macs=2_000_000, sram_bytes=40_000)
    return solve(SPACE, budget, rho=0.7, patches=Patches(grid=2, blocks=1), time_limit=0.2)


def test_a_design_goes_to_json_and_back_and_builds_the_same_network(design):
    again = Design.from_json(design.to_json())
    assert again.structure == design.structure
    assert again.problem == design.problem
    assert again.needs == design.needs
    assert (again.objective, again.relaxation, again.binding) == (design.objective, design.relaxation, design.binding)
    networks = []
    for each in (design, again):
        torch.manual_seed(0)
        networks.append(each.build())
    x = torch.rand(2, 3, 32, 32)
    assert torch.equal(networks[0].eval()(x), networks[1].eval()(x))
    assert again.to_json() == design.to_json()


def test_the_table_shows_every_super_block_and_every_budget(design):
    text = design.table()
    lines = text.splitlines()
    assert len(lines) == 2 + 2 + 1 + 3 + 2
    assert lines[2].split()[:2] == ["1", "K1DWK1"]
    for name, (need, ceiling) in design.needs.items():
        line = next(line for line in lines if line.startswith(name))
        assert f"({need / ceiling:.1%})" in line
    assert "2x2 patches to super block 1" in lines[-1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: data.pop("format"), 'without "format": "lilliput.design"'),
        (lambda data: data.update(version=7), "format version 7; this release reads version 1"),
        (lambda data: data.pop("space"), "damaged \\(KeyError: 'space'\\)"),
        (lambda data: data["space"].update(kernels=[4]), "search space: not what to_plain"),
        (lambda data: data["structure"].update(stem=8 + data["structure"]["stem"]), "it was changed by hand"),
        (lambda data: data.update(patches={"grid": 2}), "damaged \\(TypeError"),
    ],
)
def test_json_that_is_wrong_says_what_is_wrong(design, change, message):
    data = json.loads(design.to_json())
    change(data)
    with pytest.raises(DataError, match=message):
        Design.from_json(json.dumps(data))
    with pytest.raises(DataError, match="not JSON"):
        Design.from_json("{")
