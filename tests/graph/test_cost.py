import pytest
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from graph.cases import NETWORKS, OP_CASES, Case
from lilliput.graph import trace

ALL = [*OP_CASES, *NETWORKS]


def hook_macs(model: nn.Module, example: torch.Tensor) -> int:
    """Multiply-accumulates of convolutions and linear layers, counted by forward hooks from the modules alone."""
    total = 0

    def count(module: nn.Module, args: tuple, output: torch.Tensor) -> None:
        nonlocal total
        if isinstance(module, nn.Linear):
            total += output.numel() * module.in_features
        else:
            window = torch.tensor(module.kernel_size).prod().item() * module.in_channels // module.groups
            total += output.numel() * window

    layers = [m for m in model.modules() if isinstance(m, (nn.Conv1d, nn.Conv2d, nn.Linear))]
    handles = [layer.register_forward_hook(count) for layer in layers]
    with torch.no_grad():
        model(example)
    for handle in handles:
        handle.remove()
    return total


@pytest.mark.parametrize("case", [c for c in ALL if "attention" not in c.name and c.name not in ("matmul", "transformer")],
                         ids=lambda case: case.name)  # fmt: skip
def test_macs_and_params_equal_a_hook_count(case: Case):
    model, example = case.model(), case.example()
    cost = case.graph().cost()
    assert cost.macs == hook_macs(model, example)
    assert cost.params == sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize("case", NETWORKS, ids=lambda case: case.name)
def test_macs_equal_half_of_torchs_own_flop_counter(case: Case):
    model, example = case.model(), case.example()
    # It counts neither the fused attention kernels nor (so the gradient) the fused encoder path.
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        model(example.requires_grad_())
    assert 2 * case.graph().cost().macs == counter.get_total_flops()


def test_costs_per_node_add_up_to_the_total():
    cost = NETWORKS[0].graph().cost(bits=4)
    assert cost.params == sum(each.params for each in cost.per_node.values())
    assert cost.macs == sum(each.macs for each in cost.per_node.values())
    assert cost.flash_bytes == cost.weight_bytes == -(-cost.params * 4 // 8)


def test_a_worked_example():
    graph = trace(nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU()).eval(), torch.zeros(1, 3, 8, 8))
    cost = graph.cost()
    assert (cost.params, cost.macs) == (3 * 9 * 8 + 8, 4 * 4 * 8 * 27)
    assert cost.sram_bytes == 3 * 64 + 8 * 16  # while the conv runs: its input and its output
    assert graph.cost(bits=32).sram_bytes == 4 * cost.sram_bytes
