"""Run in a process that has the stand-in: the vendor's operators as loopmoe_kernels calls them,
against the definition, the wheel's meta functions and the schemas in its library."""

import ast

import torch
import torch_npu  # noqa: F401
from torch_npu import operators, wheel

from loopmoe_kernels.combine import combine
from loopmoe_kernels.permute import permute

FILE = "op_plugin/meta/_meta_registrations.py"


def meta_of(name):
    """What the wheel says about the shapes of an operator's results."""
    for node in wheel.tree(FILE).body:
        if isinstance(node, ast.FunctionDef) and node.name == f"{name}_meta":
            node.decorator_list = []
            scope = {"torch": torch}
            exec(compile(ast.Module([node], []), "<wheel>", "exec"), scope)
            return scope[node.name]
    raise AssertionError(f"the wheel has no meta function of {name}")


def shapes(value):
    values = value if isinstance(value, tuple) else (value,)
    return [(tuple(one.shape), one.dtype) for one in values]


def trained(kind, device):
    """Results and gradients of both operators on a device."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(6, 8, generator=generator).to(device).requires_grad_()
    probs = torch.rand(6, 2, generator=generator).to(device).requires_grad_()
    slots = torch.randperm(12, generator=generator).view(6, 2).to(torch.int32).to(device)
    rows = permute(x, slots, 12, dropless=True, implementation=kind)
    y = combine(rows * 2, slots, probs, dropless=True, implementation=kind)
    (y * torch.arange(8.0).to(device)).sum().backward()
    return [one.detach().cpu() for one in (rows, y, x.grad, probs.grad)]


for ours, theirs in zip(trained("reference", "cpu"), trained("vendor", "npu")):
    torch.testing.assert_close(ours, theirs)
x, slots, probs = torch.randn(6, 8), torch.randperm(12).view(6, 2), torch.rand(6, 2)
for name, arguments in {
    "npu_moe_token_permute": (x, slots),
    "npu_moe_token_unpermute": (torch.randn(12, 8), slots.flatten(), probs),
}.items():
    meta = meta_of(name)(*(one.to("meta") for one in arguments))
    assert shapes(meta) == shapes(operators.OPERATORS[name](*arguments)), name
    assert wheel.schema(name).startswith(name)
print("equal")
