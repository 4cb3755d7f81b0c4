// torch.ops.loopmoe.combine and combine_grad on the NPU.
#include "../../../ascendc/common/binding.h"
#include "../op_host/combine_tiling.h"

extern "C" uint32_t loopmoe_combine_launch(uint32_t, void *, void **);
extern "C" uint32_t loopmoe_combine_grad_launch(uint32_t, void *, void **);

namespace loopmoe {
namespace combine {

static at::Tensor Forward(
    const at::Tensor &y, const at::Tensor &slots, const c10::optional<at::Tensor> &probs)
{
    TORCH_CHECK(y.dim() == 2 && slots.dim() == 2, "loopmoe::combine takes y [R, H], slots [T, K]");
    CheckType(slots, at::kInt, "slots");
    if (probs) {
        CheckType(*probs, at::kFloat, "probs");
        TORCH_CHECK(probs->sizes() == slots.sizes(), "loopmoe::combine: probs are like slots");
    }
    at::Tensor out = at::empty({slots.size(0), y.size(1)}, y.options());
    if (out.numel() == 0) {
        return out;
    }
    Tiling tiling;
    const int64_t blocks = Plan({slots.size(0), y.size(1), slots.size(1), y.size(0), DataTypeOf(y),
                                 probs.has_value(), 0},
                                ThisMachine(), tiling);
    Launch(loopmoe_combine_launch, "combine", blocks, tiling,
           {Address(y), Address(slots), probs ? Address(*probs) : nullptr, Address(out)}, y);
    return out;
}

static std::tuple<at::Tensor, at::Tensor> Backward(
    const at::Tensor &grad, const at::Tensor &y, const at::Tensor &slots, const at::Tensor &probs)
{
    TORCH_CHECK(grad.dim() == 2 && y.dim() == 2 && slots.dim() == 2
                    && grad.size(1) == y.size(1) && grad.size(0) == slots.size(0)
                    && probs.sizes() == slots.sizes(),
                "loopmoe::combine_grad takes grad [T, H], y [R, H], slots [T, K], probs [T, K]");
    CheckType(grad, y.scalar_type(), "grad");
    CheckType(slots, at::kInt, "slots");
    CheckType(probs, at::kFloat, "probs");
    // Zeros: a row that no slot names (padding of a capacity) is not written.
    at::Tensor grad_y = at::zeros_like(y);
    at::Tensor grad_probs = at::zeros_like(probs);
    if (grad.numel() == 0 || slots.numel() == 0) {
        return {grad_y, grad_probs};
    }
    Tiling tiling;
    const int64_t blocks = Plan({slots.size(0), y.size(1), slots.size(1), y.size(0), DataTypeOf(y),
                                 1, 1},
                                ThisMachine(), tiling);
    Launch(loopmoe_combine_grad_launch, "combine_grad", blocks, tiling,
           {Address(grad), Address(y), Address(slots), Address(probs), Address(grad_y),
            Address(grad_probs)},
           grad);
    return {grad_y, grad_probs};
}

} // namespace combine
} // namespace loopmoe

TORCH_LIBRARY_FRAGMENT(loopmoe, m)
{
    m.def("combine(Tensor y, Tensor slots, Tensor? probs) -> Tensor");
    m.def("combine_grad(Tensor grad, Tensor y, Tensor slots, Tensor probs) -> (Tensor, Tensor)");
}

TORCH_LIBRARY_IMPL(loopmoe, PrivateUse1, m)
{
    m.impl("combine", loopmoe::combine::Forward);
    m.impl("combine_grad", loopmoe::combine::Backward);
}
