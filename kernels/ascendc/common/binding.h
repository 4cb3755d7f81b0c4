// What the torch bindings share: checks of tensors and the launch. CANN and torch_npu only.
#pragma once

#include <cstring>
#include <vector>

#include <ATen/ATen.h>
#include <torch/library.h>

#include "tiling/platform/platform_ascendc.h"
#include "torch_npu/csrc/core/npu/NPUStream.h"

#include "plan.h"

namespace loopmoe {

// Written by CMake for each kernel (launch.*.in): one signature, whatever CANN's form of a launch.
using Launcher = uint32_t (*)(uint32_t blocks, void *stream, void **arguments);

inline Machine ThisMachine()
{
    auto *platform = platform_ascendc::PlatformAscendCManager::GetInstance();
    uint64_t ub_bytes = 0;
    platform->GetCoreMemSize(platform_ascendc::CoreMemType::UB, ub_bytes);
    return {static_cast<int64_t>(platform->GetCoreNumAiv()), static_cast<int64_t>(ub_bytes)};
}

inline int64_t DataTypeOf(const at::Tensor &tensor)
{
    TORCH_CHECK(tensor.scalar_type() == at::kBFloat16 || tensor.scalar_type() == at::kFloat,
                "loopmoe: bfloat16 and float32 are known, not ", tensor.scalar_type());
    return tensor.scalar_type() == at::kBFloat16 ? BFLOAT16 : FLOAT32;
}

inline void CheckType(const at::Tensor &tensor, at::ScalarType type, const char *name)
{
    TORCH_CHECK(tensor.scalar_type() == type, "loopmoe: ", name, " must be ", type, ", not ",
                tensor.scalar_type());
}

// The address of a tensor that the caller keeps alive, dense in memory.
inline void *Address(const at::Tensor &tensor)
{
    TORCH_CHECK(tensor.is_contiguous(), "loopmoe: a tensor is not contiguous");
    return tensor.data_ptr();
}

// `pointers`: inputs and outputs in the kernel's order; workspace and tiling are added.
template <typename TILING>
void Launch(Launcher launcher, const char *name, int64_t blocks, const TILING &tiling,
            std::vector<void *> pointers, const at::Tensor &like)
{
    TORCH_CHECK(blocks > 0, "loopmoe::", name, ": not even one piece of a row fits the buffer");
    const at::Tensor host
        = at::empty({static_cast<int64_t>(sizeof tiling)}, at::TensorOptions(at::kByte));
    std::memcpy(host.data_ptr(), &tiling, sizeof tiling);
    // The allocator reuses it only after what is on this stream, so after the kernel.
    const at::Tensor device = host.to(like.device());
    pointers.push_back(nullptr); // no workspace
    pointers.push_back(device.data_ptr());
    // stream() first hands over what torch_npu still holds in its queue: order is kept.
    void *stream = c10_npu::getCurrentNPUStream().stream();
    const uint32_t failed = launcher(static_cast<uint32_t>(blocks), stream, pointers.data());
    TORCH_CHECK(failed == 0, "loopmoe::", name, ": the launch failed with ", failed);
}

} // namespace loopmoe
