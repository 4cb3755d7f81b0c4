// torch.ops.loopmoe.permute on the NPU; its gradient is combine without weights.
#include "../../../ascendc/common/binding.h"
#include "../op_host/permute_tiling.h"

extern "C" uint32_t loopmoe_permute_launch(uint32_t, void *, void **);

namespace loopmoe {
namespace permute {

static at::Tensor Forward(const at::Tensor &x, const at::Tensor &slots, int64_t rows)
{
    TORCH_CHECK(x.dim() == 2 && slots.dim() == 2 && x.size(0) == slots.size(0) && rows >= 0,
                "loopmoe::permute takes x [T, H], slots [T, K] and the number of rows");
    CheckType(slots, at::kInt, "slots");
    // Zeros: a row that no slot names (padding of a capacity) is not written.
    at::Tensor out = at::zeros({rows, x.size(1)}, x.options());
    if (out.numel() == 0 || slots.numel() == 0) {
        return out;
    }
    Tiling tiling;
    const int64_t row_bytes = x.size(1) * static_cast<int64_t>(x.element_size());
    const int64_t blocks
        = Plan({x.size(0), row_bytes, slots.size(1), rows}, ThisMachine(), tiling);
    Launch(loopmoe_permute_launch, "permute", blocks, tiling,
           {Address(x), Address(slots), Address(out)}, x);
    return out;
}

} // namespace permute
} // namespace loopmoe

TORCH_LIBRARY_FRAGMENT(loopmoe, m)
{
    m.def("permute(Tensor x, Tensor slots, int rows) -> Tensor");
}

TORCH_LIBRARY_IMPL(loopmoe, PrivateUse1, m)
{
    m.impl("permute", loopmoe::permute::Forward);
}
