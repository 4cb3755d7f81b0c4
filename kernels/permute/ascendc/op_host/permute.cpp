// Definition of LoopmoePermute for CANN. The number of output rows is an attribute: it depends on
// the content of `slots`.
#include "../../../ascendc/common/host.h"
#include "permute_tiling.h"

namespace loopmoe {
namespace permute {

static ge::graphStatus Forward(gert::TilingContext *context)
{
    const int64_t *rows = context->GetAttrs()->GetAttrPointer<int64_t>(0);
    const Shape shape{Dim(context, 0, 0), Dim(context, 0, 1) * BytesOf(DataTypeOf(context, 0)),
                      Dim(context, 1, 1), *rows};
    Tiling tiling;
    const int64_t blocks = Plan(shape, MachineOf(context), tiling);
    return WritePlan(context, tiling, blocks);
}

static ge::graphStatus Infer(gert::InferShapeContext *context)
{
    CopyShape(context, 0, 0);
    context->GetOutputShape(0)->SetDim(0, *context->GetAttrs()->GetAttrPointer<int64_t>(0));
    return ge::GRAPH_SUCCESS;
}

static ge::graphStatus InferType(gert::InferDataTypeContext *context)
{
    return context->SetOutputDataType(0, context->GetInputDataType(0));
}

} // namespace permute
} // namespace loopmoe

namespace ops {

class LoopmoePermute : public OpDef {
public:
    explicit LoopmoePermute(const char *name) : OpDef(name)
    {
        this->Input("x").ParamType(REQUIRED).LOOPMOE_ELEMENTS;
        this->Input("slots").ParamType(REQUIRED).LOOPMOE_INTS;
        this->Output("out").ParamType(REQUIRED).LOOPMOE_ELEMENTS;
        this->Attr("rows").AttrType(REQUIRED).Int();
        this->SetInferShape(loopmoe::permute::Infer)
            .SetInferDataType(loopmoe::permute::InferType);
        this->AICore().SetTiling(loopmoe::permute::Forward);
        this->AICore().AddConfig("ascend910b");
        this->AICore().AddConfig("ascend910_93");
    }
};
OP_ADD(LoopmoePermute);

} // namespace ops
