// Definitions of LoopmoeWeightedSwiglu and LoopmoeWeightedSwigluGrad for CANN.
#include "../../../ascendc/common/host.h"
#include "weighted_swiglu_tiling.h"

namespace loopmoe {
namespace weighted_swiglu {

static ge::graphStatus TilingOf(gert::TilingContext *context, int gate_up, bool backward)
{
    const Shape shape{RowsOf(context, gate_up), WidthOf(context, gate_up) / 2,
                      DataTypeOf(context, gate_up), backward};
    Tiling tiling;
    const int64_t blocks = Plan(shape, MachineOf(context), tiling);
    return WritePlan(context, tiling, blocks);
}

static ge::graphStatus Forward(gert::TilingContext *context) { return TilingOf(context, 0, false); }
static ge::graphStatus Backward(gert::TilingContext *context) { return TilingOf(context, 1, true); }

static ge::graphStatus InferForward(gert::InferShapeContext *context)
{
    CopyShape(context, 0, 0);
    gert::Shape *out = context->GetOutputShape(0);
    const size_t last = out->GetDimNum() - 1;
    out->SetDim(last, out->GetDim(last) / 2);
    return ge::GRAPH_SUCCESS;
}

static ge::graphStatus InferBackward(gert::InferShapeContext *context)
{
    CopyShape(context, 1, 0);
    return CopyShape(context, 2, 1);
}

static ge::graphStatus InferForwardType(gert::InferDataTypeContext *context)
{
    return context->SetOutputDataType(0, context->GetInputDataType(0));
}

static ge::graphStatus InferBackwardType(gert::InferDataTypeContext *context)
{
    context->SetOutputDataType(0, context->GetInputDataType(1));
    return context->SetOutputDataType(1, ge::DT_FLOAT);
}

} // namespace weighted_swiglu
} // namespace loopmoe

namespace ops {

class LoopmoeWeightedSwiglu : public OpDef {
public:
    explicit LoopmoeWeightedSwiglu(const char *name) : OpDef(name)
    {
        this->Input("gate_up").ParamType(REQUIRED).LOOPMOE_ELEMENTS;
        this->Input("probs").ParamType(REQUIRED).LOOPMOE_FLOATS;
        this->Output("out").ParamType(REQUIRED).LOOPMOE_ELEMENTS;
        this->SetInferShape(loopmoe::weighted_swiglu::InferForward)
            .SetInferDataType(loopmoe::weighted_swiglu::InferForwardType);
        this->AICore().SetTiling(loopmoe::weighted_swiglu::Forward);
        this->AICore().AddConfig("ascend910b");
        this->AICore().AddConfig("ascend910_93");
    }
};
OP_ADD(LoopmoeWeightedSwiglu);

class LoopmoeWeightedSwigluGrad : public OpDef {
public:
    explicit LoopmoeWeightedSwigluGrad(const char *name) : OpDef(name)
    {
        this->Input("grad").ParamType(REQUIRED).LOOPMOE_ELEMENTS;
        this->Input("gate_up").ParamType(REQUIRED).LOOPMOE_ELEMENTS;
        this->Input("probs").ParamType(REQUIRED).LOOPMOE_FLOATS;
        this->Output("grad_gate_up").ParamType(REQUIRED).LOOPMOE_ELEMENTS;
        this->Output("grad_probs").ParamType(REQUIRED).LOOPMOE_FLOATS;
        this->SetInferShape(loopmoe::weighted_swiglu::InferBackward)
            .SetInferDataType(loopmoe::weighted_swiglu::InferBackwardType);
        this->AICore().SetTiling(loopmoe::weighted_swiglu::Backward);
        this->AICore().AddConfig("ascend910b");
        this->AICore().AddConfig("ascend910_93");
    }
};
OP_ADD(LoopmoeWeightedSwigluGrad);

} // namespace ops
