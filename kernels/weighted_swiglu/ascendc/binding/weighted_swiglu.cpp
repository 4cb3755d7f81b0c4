// torch.ops.loopmoe.weighted_swiglu and weighted_swiglu_grad on the NPU.
#include "../../../ascendc/common/binding.h"
#include "../op_host/weighted_swiglu_tiling.h"

extern "C" uint32_t loopmoe_weighted_swiglu_launch(uint32_t, void *, void **);
extern "C" uint32_t loopmoe_weighted_swiglu_grad_launch(uint32_t, void *, void **);

namespace loopmoe {
namespace weighted_swiglu {

static at::Tensor Forward(const at::Tensor &gate_up, const at::Tensor &probs)
{
    TORCH_CHECK(gate_up.dim() == 2 && gate_up.size(1) % 2 == 0 && probs.dim() == 1
                    && probs.size(0) == gate_up.size(0),
                "loopmoe::weighted_swiglu takes gate_up [T, 2f] and probs [T]");
    CheckType(probs, at::kFloat, "probs");
    const int64_t rows = gate_up.size(0), width = gate_up.size(1) / 2;
    at::Tensor out = at::empty({rows, width}, gate_up.options());
    if (out.numel() == 0) {
        return out;
    }
    Tiling tiling;
    const int64_t blocks = Plan({rows, width, DataTypeOf(gate_up), 0}, ThisMachine(), tiling);
    Launch(loopmoe_weighted_swiglu_launch, "weighted_swiglu", blocks, tiling,
           {Address(gate_up), Address(probs), Address(out)}, gate_up);
    return out;
}

static std::tuple<at::Tensor, at::Tensor> Backward(
    const at::Tensor &grad, const at::Tensor &gate_up, const at::Tensor &probs)
{
    TORCH_CHECK(gate_up.dim() == 2 && grad.dim() == 2 && gate_up.size(1) == 2 * grad.size(1)
                    && grad.size(0) == gate_up.size(0) && probs.dim() == 1
                    && probs.size(0) == grad.size(0),
                "loopmoe::weighted_swiglu_grad takes grad [T, f], gate_up [T, 2f], probs [T]");
    CheckType(grad, gate_up.scalar_type(), "grad");
    CheckType(probs, at::kFloat, "probs");
    at::Tensor grad_gate_up = at::empty_like(gate_up);
    at::Tensor grad_probs = at::zeros_like(probs);
    if (grad.numel() == 0) {
        return {grad_gate_up, grad_probs};
    }
    Tiling tiling;
    const int64_t blocks = Plan({grad.size(0), grad.size(1), DataTypeOf(gate_up), 1},
                                ThisMachine(), tiling);
    Launch(loopmoe_weighted_swiglu_grad_launch, "weighted_swiglu_grad", blocks, tiling,
           {Address(grad), Address(gate_up), Address(probs), Address(grad_gate_up),
            Address(grad_probs)},
           grad);
    return {grad_gate_up, grad_probs};
}

} // namespace weighted_swiglu
} // namespace loopmoe

TORCH_LIBRARY_FRAGMENT(loopmoe, m)
{
    m.def("weighted_swiglu(Tensor gate_up, Tensor probs) -> Tensor");
    m.def("weighted_swiglu_grad(Tensor grad, Tensor gate_up, Tensor probs) -> (Tensor, Tensor)");
}

TORCH_LIBRARY_IMPL(loopmoe, PrivateUse1, m)
{
    m.impl("weighted_swiglu", loopmoe::weighted_swiglu::Forward);
    m.impl("weighted_swiglu_grad", loopmoe::weighted_swiglu::Backward);
}
