// Definitions of LoopmoeCombine and LoopmoeCombineGrad for CANN.
#include "../../../ascendc/common/host.h"
#include "combine_tiling.h"

namespace loopmoe {
namespace combine {

static ge::graphStatus TilingOf(gert::TilingContext *context, int y, bool weighted, bool backward)
{
    const Shape shape{Dim(context, y + 1, 0), Dim(context, y, 1),     Dim(context, y + 1, 1),
                      Dim(context, y, 0),     DataTypeOf(context, y), weighted,
                      backward};
    Tiling tiling;
    const int64_t blocks = Plan(shape, MachineOf(context), tiling);
    return WritePlan(context, tiling, blocks);
}

static ge::graphStatus Forward(gert::TilingContext *context)
{
    return TilingOf(context, 0, context->GetOptionalInputShape(2) != nullptr, false);
}

static ge::graphStatus Backward(gert::TilingContext *context)
{
    return TilingOf(context, 1, true, true);
}

static ge::graphStatus InferForward(gert::InferShapeContext *context)
{
    CopyShape(context, 0, 0);
    context->GetOutputShape(0)->SetDim(0, context->GetInputShape(1)->GetDim(0));
    return ge::GRAPH_SUCCESS;
}

static ge::graphStatus InferBackward(gert::InferShapeContext *context)
{
    CopyShape(context, 1, 0);
    return CopyShape(context, 3, 1);
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

} // namespace combine
} // namespace loopmoe

namespace ops {

class LoopmoeCombine : public OpDef {
public:
    explicit LoopmoeCombine(const char *name) : OpDef(name)
    {
        this->Input("y").ParamType(REQUIRED).LOOPMOE_ELEMENTS;
        this->Input("slots").ParamType(REQUIRED).LOOPMOE_INTS;
        this->Input("probs").ParamType(OPTIONAL).LOOPMOE_FLOATS;
        this->Output("out").ParamType(REQUIRED).LOOPMOE_ELEMENTS;
        this->SetInferShape(loopmoe::combine::InferForward)
            .SetInferDataType(loopmoe::combine::InferForwardType);
        this->AICore().SetTiling(loopmoe::combine::Forward);
        this->AICore().AddConfig("ascend910b");
        this->AICore().AddConfig("ascend910_93");
    }
};
OP_ADD(LoopmoeCombine);

class LoopmoeCombineGrad : public OpDef {
public:
    explicit LoopmoeCombineGrad(const char *name) : OpDef(name)
    {
        this->Input("grad").ParamType(REQUIRED).LOOPMOE_ELEMENTS;
        this->Input("y").ParamType(REQUIRED).LOOPMOE_ELEMENTS;
        this->Input("slots").ParamType(REQUIRED).LOOPMOE_INTS;
        this->Input("probs").ParamType(REQUIRED).LOOPMOE_FLOATS;
        this->Output("grad_y").ParamType(REQUIRED).LOOPMOE_ELEMENTS;
        this->Output("grad_probs").ParamType(REQUIRED).LOOPMOE_FLOATS;
        this->SetInferShape(loopmoe::combine::InferBackward)
            .SetInferDataType(loopmoe::combine::InferBackwardType);
        this->AICore().SetTiling(loopmoe::combine::Backward);
        this->AICore().AddConfig("ascend910b");
        this->AICore().AddConfig("ascend910_93");
    }
};
OP_ADD(LoopmoeCombineGrad);

} // namespace ops
