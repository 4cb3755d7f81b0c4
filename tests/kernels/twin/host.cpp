// Runs what an op_host file registers, compiled against the stand-ins in cann/. HOST_FILE is it.
#include HOST_FILE

#include <algorithm>
#include <cstring>

extern "C" {

// "input,input|output": the operator's parameters in order; empty where there is no such type.
const char *host_parameters(const char *type)
{
    static std::string text;
    text.clear();
    const auto found = ops::Registry().find(type);
    if (found == ops::Registry().end() || found->second.core.chips.size() != 2) {
        return text.c_str();
    }
    for (const auto *list : {&found->second.inputs, &found->second.outputs}) {
        for (const auto &parameter : *list) {
            if (parameter.types.size() != parameter.formats.size()) {
                return "";
            }
            text += parameter.name + ",";
        }
        text.back() = '|';
    }
    text.pop_back();
    return text.c_str();
}

// dims: rank and three axes per input (rank 0: absent). types: 0 float, 1 int32, 2 bf16.
// Returns the bytes of the tiling, -1 where it fails; out_dims and out_types as the inputs'.
int64_t host_run(const char *type, int inputs, const int64_t *dims, const int32_t *types,
                 int64_t int_attr, float float_attr, int use_float, int cores, int64_t ub_bytes,
                 uint8_t *tiling, int64_t *blocks, int64_t *out_dims, int32_t *out_types)
{
    const ops::OpDef &operation = ops::Registry().at(type);
    gert::Context base;
    for (int i = 0; i < inputs; ++i) {
        const int64_t *dim = dims + 4 * i;
        base.shapes.push_back({gert::Shape{std::vector<int64_t>(dim + 1, dim + 1 + dim[0])}});
        base.types.push_back({static_cast<ge::DataType>(types[i])});
    }
    base.attrs.values
        = {use_float ? static_cast<const void *>(&float_attr) : static_cast<const void *>(&int_attr)};
    base.platform = {static_cast<uint32_t>(cores), static_cast<uint64_t>(ub_bytes)};

    gert::InferShapeContext shapes{base};
    gert::InferDataTypeContext out{base};
    gert::TilingContext context{base};
    if (operation.shape(&shapes) || operation.type(&out) || operation.core.tiling(&context)
        || context.workspace != 0) {
        return -1;
    }
    for (size_t i = 0; i < operation.outputs.size(); ++i) {
        const auto &shape = shapes.out_shapes[i].dims;
        out_dims[4 * i] = static_cast<int64_t>(shape.size());
        std::copy(shape.begin(), shape.end(), out_dims + 4 * i + 1);
        out_types[i] = out.out_types[i];
    }
    std::memcpy(tiling, context.raw.bytes.data(), context.raw.size);
    *blocks = context.blocks;
    return static_cast<int64_t>(context.raw.size);
}
}
