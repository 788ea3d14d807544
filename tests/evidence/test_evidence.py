import doctest
import importlib
import json
import subprocess
import sys

import numpy as np
import pytest

import lilliput.evidence
from lilliput.errors import ConfigError
from lilliput.evidence import Evidence, How


def test_importing_the_room_loads_no_heavy_package():
    heavy = ("torch", "numpy", "matplotlib", "jinja2", "PIL")
    code = f"import sys, lilliput.evidence; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("module", ["budget", "evidence", "numbers"])
def test_the_examples_in_the_docstrings_are_true(module):
    result = doctest.testmod(importlib.import_module(f"lilliput.evidence.{module}"))
    assert result.attempted > 0
    assert result.failed == 0


def test_every_public_name_is_there_once():
    names = lilliput.evidence.__all__
    assert len(names) == len(set(names)) <= 20
    assert all(hasattr(lilliput.evidence, name) for name in names)


def test_a_figure_survives_json():
    figure = Evidence(
        "accuracy.int8", 0.975, "share", "measured", n=360, spread=0.01, source="test", detail={"split": [1, 2]}
    )
    read = Evidence.from_json("accuracy.int8", json.loads(json.dumps(figure.to_json())))
    assert read == figure
    assert read.how is How.MEASURED


def test_fields_that_are_not_set_are_not_written():
    assert Evidence("cost.macs", 7, "MACs", How.COUNTED).to_json() == {"value": 7, "unit": "MACs", "how": "counted"}


@pytest.mark.parametrize(
    ("value", "plain"),
    [
        (np.float32(0.5), 0.5),
        (np.int64(3), 3),
        (np.bool_(True), True),
        (np.array(2.0), 2.0),
        (True, True),
        ("exact", "exact"),
    ],
)
def test_a_scalar_of_numpy_becomes_pythons_own(value, plain):
    kept = Evidence("a.b", value, "", "counted").value
    assert (kept, type(kept)) == (plain, type(plain))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"name": "Accuracy.Int8"}, "evidence name 'Accuracy.Int8': must be words of a-z.*try 'accuracy.int8'"),
        ({"name": "8bit accuracy"}, "try 'bit_accuracy'"),
        ({"name": "a..b"}, "try 'a.b'"),
        ({"how": "guessed"}, "evidence 'a.b': how='guessed' must be one of counted, measured, emulated, proved"),
        ({"value": float("nan")}, "evidence 'a.b': nan is not finite"),
        ({"value": float("-inf")}, "evidence 'a.b': -inf is not finite"),
        ({"value": [1]}, r"evidence 'a.b': \[1\] is of type list; must be a number"),
        ({"value": np.zeros(2)}, "is of type ndarray"),
        ({"n": 0}, "evidence 'a.b': n=0 must be a whole number above 0"),
        ({"spread": -1.0}, "evidence 'a.b': spread=-1.0 must be 0 or above"),
        ({"detail": {1, 2}}, "evidence 'a.b': detail cannot be written as JSON"),
        ({"detail": float("nan")}, "evidence 'a.b': detail cannot be written as JSON"),
    ],
)
def test_a_figure_that_would_mislead_is_refused(fields, message):
    with pytest.raises(ConfigError, match=message):
        Evidence(**({"name": "a.b", "value": 1, "unit": "bytes", "how": "counted"} | fields))
