// What the op_host files share: from a tiling context of CANN to a plan and back. CANN only.
#pragma once

#include <cstring>

#include "register/op_def_registry.h"
#include "tiling/platform/platform_ascendc.h"

#include "plan.h"

namespace loopmoe {

inline Machine MachineOf(gert::TilingContext *context)
{
    const auto platform = platform_ascendc::PlatformAscendC(context->GetPlatformInfo());
    uint64_t ub_bytes = 0;
    platform.GetCoreMemSize(platform_ascendc::CoreMemType::UB, ub_bytes);
    return {static_cast<int64_t>(platform.GetCoreNumAiv()), static_cast<int64_t>(ub_bytes)};
}

inline int64_t Dim(gert::TilingContext *context, int input, int axis)
{
    return context->GetInputShape(input)->GetStorageShape().GetDim(axis);
}

// Product of all axes but the last: the operations take [..., width].
inline int64_t RowsOf(gert::TilingContext *context, int input)
{
    const auto &shape = context->GetInputShape(input)->GetStorageShape();
    int64_t rows = 1;
    for (size_t axis = 0; axis + 1 < shape.GetDimNum(); ++axis) {
        rows *= shape.GetDim(axis);
    }
    return rows;
}

inline int64_t WidthOf(gert::TilingContext *context, int input)
{
    const auto &shape = context->GetInputShape(input)->GetStorageShape();
    return shape.GetDim(shape.GetDimNum() - 1);
}

inline int64_t DataTypeOf(gert::TilingContext *context, int input)
{
    return context->GetInputDesc(input)->GetDataType() == ge::DT_BF16 ? BFLOAT16 : FLOAT32;
}

// Writes the tiling that `blocks` blocks read; fails where Plan found none.
template <typename TILING>
inline ge::graphStatus WritePlan(gert::TilingContext *context, const TILING &tiling, int64_t blocks)
{
    auto *raw = context->GetRawTilingData();
    if (blocks < 1 || raw == nullptr || raw->GetCapacity() < sizeof tiling) {
        return ge::GRAPH_FAILED;
    }
    std::memcpy(raw->GetData(), &tiling, sizeof tiling);
    raw->SetDataSize(sizeof tiling);
    context->SetBlockDim(static_cast<uint32_t>(blocks));
    context->SetTilingKey(0);
    context->GetWorkspaceSizes(1)[0] = 0;
    return ge::GRAPH_SUCCESS;
}

// Shapes and types that outputs take over from an input.
inline ge::graphStatus CopyShape(gert::InferShapeContext *context, int input, int output)
{
    *context->GetOutputShape(output) = *context->GetInputShape(input);
    return ge::GRAPH_SUCCESS;
}

// One column per variant of an operation: the first in bf16, the second in fp32.
#define LOOPMOE_PLAIN Format({ge::FORMAT_ND, ge::FORMAT_ND})
#define LOOPMOE_ELEMENTS DataType({ge::DT_BF16, ge::DT_FLOAT}).LOOPMOE_PLAIN
#define LOOPMOE_FLOATS DataType({ge::DT_FLOAT, ge::DT_FLOAT}).LOOPMOE_PLAIN
#define LOOPMOE_INTS DataType({ge::DT_INT32, ge::DT_INT32}).LOOPMOE_PLAIN

} // namespace loopmoe
