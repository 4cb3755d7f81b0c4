// torch.ops.loopmoe.adaln_norm and adaln_norm_grad on the NPU.
#include "../../../ascendc/common/binding.h"
#include "../op_host/adaln_norm_tiling.h"

extern "C" uint32_t loopmoe_adaln_norm_launch(uint32_t, void *, void **);
extern "C" uint32_t loopmoe_adaln_norm_grad_launch(uint32_t, void *, void **);

namespace loopmoe {
namespace adaln_norm {

static void CheckLike(const at::Tensor &tensor, const at::Tensor &hidden, const char *name)
{
    CheckType(tensor, hidden.scalar_type(), name);
    TORCH_CHECK(tensor.sizes() == hidden.sizes(), "loopmoe::adaln_norm: ", name,
                " must have the shape of hidden");
}

// Value and the inverse root mean square of each token, which the gradient takes.
static std::tuple<at::Tensor, at::Tensor> Forward(
    const at::Tensor &hidden, const at::Tensor &gamma, const at::Tensor &beta, double eps)
{
    CheckLike(gamma, hidden, "gamma");
    CheckLike(beta, hidden, "beta");
    const int64_t width = hidden.size(-1);
    at::Tensor out = at::empty_like(hidden);
    at::Tensor inverse
        = at::empty(hidden.sizes().slice(0, hidden.dim() - 1), hidden.options().dtype(at::kFloat));
    if (out.numel() == 0) {
        return {out, inverse};
    }
    Tiling tiling;
    const int64_t blocks = Plan({hidden.numel() / width, width, DataTypeOf(hidden), 0, eps},
                                ThisMachine(), tiling);
    Launch(loopmoe_adaln_norm_launch, "adaln_norm", blocks, tiling,
           {Address(hidden), Address(gamma), Address(beta), Address(out), Address(inverse)},
           hidden);
    return {out, inverse};
}

// Gradients of hidden and gamma; that of beta is `grad` itself.
static std::tuple<at::Tensor, at::Tensor> Backward(
    const at::Tensor &grad, const at::Tensor &hidden, const at::Tensor &gamma,
    const at::Tensor &inverse)
{
    CheckLike(grad, hidden, "grad");
    CheckLike(gamma, hidden, "gamma");
    CheckType(inverse, at::kFloat, "inverse");
    const int64_t width = hidden.size(-1);
    at::Tensor grad_hidden = at::empty_like(hidden);
    at::Tensor grad_gamma = at::empty_like(gamma);
    if (hidden.numel() == 0) {
        return {grad_hidden, grad_gamma};
    }
    const int64_t rows = hidden.numel() / width;
    TORCH_CHECK(inverse.numel() == rows, "loopmoe::adaln_norm_grad: one inverse per token");
    Tiling tiling;
    const int64_t blocks
        = Plan({rows, width, DataTypeOf(hidden), 1, 0.0}, ThisMachine(), tiling);
    Launch(loopmoe_adaln_norm_grad_launch, "adaln_norm_grad", blocks, tiling,
           {Address(grad), Address(hidden), Address(gamma), Address(inverse),
            Address(grad_hidden), Address(grad_gamma)},
           hidden);
    return {grad_hidden, grad_gamma};
}

} // namespace adaln_norm
} // namespace loopmoe

TORCH_LIBRARY_FRAGMENT(loopmoe, m)
{
    m.def("adaln_norm(Tensor hidden, Tensor gamma, Tensor beta, float eps) -> (Tensor, Tensor)");
    m.def("adaln_norm_grad(Tensor grad, Tensor hidden, Tensor gamma, Tensor inverse)"
          " -> (Tensor, Tensor)");
}

TORCH_LIBRARY_IMPL(loopmoe, PrivateUse1, m)
{
    m.impl("adaln_norm", loopmoe::adaln_norm::Forward);
    m.impl("adaln_norm_grad", loopmoe::adaln_norm::Backward);
}
