import xml.etree.ElementTree as ET

import pytest

from graph.cases import NETWORKS, Case
from lilliput.graph import Op, draw

SVG = "{http://www.w3.org/2000/svg}"


@pytest.mark.parametrize("case", NETWORKS, ids=lambda case: case.name)
def test_a_drawing_has_a_box_for_each_input_and_node_and_stays_on_its_sheet(case: Case):
    graph = case.graph()
    root = ET.fromstring(draw(graph))
    boxes = root.findall(f"{SVG}rect")
    assert len(boxes) == len(graph.nodes) + len(graph.inputs)
    assert root.find(f"{SVG}title").text.startswith("Network")
    width, height = float(root.get("width")), float(root.get("height"))
    for box in boxes:
        assert float(box.get("x")) + float(box.get("width")) <= width
        assert float(box.get("y")) + float(box.get("height")) <= height


def test_hidden_kinds_leave_their_readers_connected():
    graph = NETWORKS[0].graph()
    hide = {Op.BATCH_NORM, Op.RELU6, Op.RESHAPE}
    root = ET.fromstring(draw(graph, hide=hide))
    kept = [node for node in graph.nodes if node.op not in hide]
    assert len(root.findall(f"{SVG}rect")) == len(kept) + 1
    edges = sum(len(graph.activations(node)) for node in kept)
    assert len(root.findall(f"{SVG}path")) == edges


def test_names_cannot_inject_markup():
    graph = NETWORKS[3].graph()
    hostile = graph.replace(name="<script>alert(1)</script>")
    assert "<script>" not in draw(hostile)
