// Definitions of LoopmoeAdalnNorm and LoopmoeAdalnNormGrad for CANN.
#include "../../../ascendc/common/host.h"
#include "adaln_norm_tiling.h"

namespace loopmoe {
namespace adaln_norm {

static ge::graphStatus TilingOf(gert::TilingContext *context, double eps, bool backward)
{
    const Shape shape{RowsOf(context, 0), WidthOf(context, 0), DataTypeOf(context, 0), backward,
                      eps};
    Tiling tiling;
    const int64_t blocks = Plan(shape, MachineOf(context), tiling);
    return WritePlan(context, tiling, blocks);
}

static ge::graphStatus Forward(gert::TilingContext *context)
{
    return TilingOf(context, *context->GetAttrs()->GetAttrPointer<float>(0), false);
}

static ge::graphStatus Backward(gert::TilingContext *context)
{
    return TilingOf(context, 0.0, true);
}

static ge::graphStatus InferForward(gert::InferShapeContext *context)
{
    CopyShape(context, 0, 0);
    CopyShape(context, 0, 1);
    gert::Shape *inverse = context->GetOutputShape(1);
    inverse->SetDimNum(inverse->GetDimNum() - 1);
    return ge::GRAPH_SUCCESS;
}

static ge::graphStatus InferBackward(gert::InferShapeContext *context)
{
    CopyShape(context, 1, 0);
    return CopyShape(context, 2, 1);
}

static ge::graphStatus InferForwardType(gert::InferDataTypeContext *context)
{
    context->SetOutputDataType(0, context->GetInputDataType(0));
    return context->SetOutputDataType(1, ge::DT_FLOAT);
}

static ge::graphStatus InferBackwardType(gert::InferDataTypeContext *context)
{
    context->SetOutputDataType(0, context->GetInputDataType(1));
    return context->SetOutputDataType(1, context->GetInputDataType(2));
}

} // namespace adaln_norm
} // namespace loopmoe

namespace ops {

class LoopmoeAdalnNorm : public OpDef {
public:
    explicit LoopmoeAdalnNorm(const char *name) : OpDef(name)
    {
        this->Input("hidden").ParamType(REQUIRED).LOOPMOE_ELEMENTS;
        this->Input("gamma").ParamType(REQUIRED).LOOPMOE_ELEMENTS;
        this->Input("beta").ParamType(REQUIRED).LOOPMOE_ELEMENTS;
        this->Output("out").ParamType(REQUIRED).LOOPMOE_ELEMENTS;
        this->Output("inverse").ParamType(REQUIRED).LOOPMOE_FLOATS;
        this->Attr("eps").AttrType(REQUIRED).Float();
        this->SetInferShape(loopmoe::adaln_norm::InferForward)
            .SetInferDataType(loopmoe::adaln_norm::InferForwardType);
        this->AICore().SetTiling(loopmoe::adaln_norm::Forward);
        this->AICore().AddConfig("ascend910b");
        this->AICore().AddConfig("ascend910_93");
    }
};
OP_ADD(LoopmoeAdalnNorm);

class LoopmoeAdalnNormGrad : public OpDef {
public:
    explicit LoopmoeAdalnNormGrad(const char *name) : OpDef(name)
    {
        this->Input("grad").ParamType(REQUIRED).LOOPMOE_ELEMENTS;
        this->Input("hidden").ParamType(REQUIRED).LOOPMOE_ELEMENTS;
        this->Input("gamma").ParamType(REQUIRED).LOOPMOE_ELEMENTS;
        this->Input("inverse").ParamType(REQUIRED).LOOPMOE_FLOATS;
        this->Output("grad_hidden").ParamType(REQUIRED).LOOPMOE_ELEMENTS;
        this->Output("grad_gamma").ParamType(REQUIRED).LOOPMOE_ELEMENTS;
        this->SetInferShape(loopmoe::adaln_norm::InferBackward)
            .SetInferDataType(loopmoe::adaln_norm::InferBackwardType);
        this->AICore().SetTiling(loopmoe::adaln_norm::Backward);
        this->AICore().AddConfig("ascend910b");
        this->AICore().AddConfig("ascend910_93");
    }
};
OP_ADD(LoopmoeAdalnNormGrad);

} // namespace ops
