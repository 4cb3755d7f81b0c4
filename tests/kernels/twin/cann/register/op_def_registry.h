// Stand-in, written for the tests: the names of CANN's operator registration that op_host uses,
// with just enough behind them to run InferShape, InferDataType and the tiling function.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "tiling/platform/platform_ascendc.h"

namespace ge {
using graphStatus = uint32_t;
constexpr graphStatus GRAPH_SUCCESS = 0, GRAPH_FAILED = 1;
enum DataType { DT_FLOAT, DT_INT32, DT_BF16 };
enum Format { FORMAT_ND };
} // namespace ge

namespace gert {

struct Shape {
    std::vector<int64_t> dims;
    size_t GetDimNum() const { return dims.size(); }
    int64_t GetDim(size_t axis) const { return dims.at(axis); }
    void SetDim(size_t axis, int64_t value) { dims.at(axis) = value; }
    void SetDimNum(size_t count) { dims.resize(count); }
};

struct StorageShape {
    Shape shape;
    const Shape &GetStorageShape() const { return shape; }
};

struct TensorDesc {
    ge::DataType type;
    ge::DataType GetDataType() const { return type; }
};

struct RuntimeAttrs {
    std::vector<const void *> values;
    template <typename T> const T *GetAttrPointer(size_t index) const
    {
        return static_cast<const T *>(values.at(index));
    }
};

struct RawTilingData {
    std::vector<uint8_t> bytes = std::vector<uint8_t>(4096);
    size_t size = 0;
    void *GetData() { return bytes.data(); }
    size_t GetCapacity() const { return bytes.size(); }
    void SetDataSize(size_t value) { size = value; }
};

struct Context {
    std::vector<StorageShape> shapes; // of the inputs; no axes at all: absent
    std::vector<TensorDesc> types;
    std::vector<Shape> out_shapes = std::vector<Shape>(4);
    std::vector<ge::DataType> out_types = std::vector<ge::DataType>(4);
    RuntimeAttrs attrs;
    RawTilingData raw;
    fe::PlatFormInfos platform;
    uint32_t blocks = 0;
    size_t workspace = 1;
    const RuntimeAttrs *GetAttrs() const { return &attrs; }
};

struct TilingContext : Context {
    fe::PlatFormInfos *GetPlatformInfo() { return &platform; }
    const StorageShape *GetInputShape(size_t index) const { return &shapes.at(index); }
    const StorageShape *GetOptionalInputShape(size_t index) const
    {
        return shapes.at(index).shape.dims.empty() ? nullptr : &shapes.at(index);
    }
    const TensorDesc *GetInputDesc(size_t index) const { return &types.at(index); }
    RawTilingData *GetRawTilingData() { return &raw; }
    ge::graphStatus SetBlockDim(uint32_t value)
    {
        blocks = value;
        return ge::GRAPH_SUCCESS;
    }
    ge::graphStatus SetTilingKey(uint64_t) { return ge::GRAPH_SUCCESS; }
    size_t *GetWorkspaceSizes(size_t) { return &workspace; }
};

struct InferShapeContext : Context {
    const Shape *GetInputShape(size_t index) const { return &shapes.at(index).shape; }
    Shape *GetOutputShape(size_t index) { return &out_shapes.at(index); }
};

struct InferDataTypeContext : Context {
    ge::DataType GetInputDataType(size_t index) const { return types.at(index).type; }
    ge::graphStatus SetOutputDataType(size_t index, ge::DataType type)
    {
        out_types.at(index) = type;
        return ge::GRAPH_SUCCESS;
    }
};

} // namespace gert

namespace ops {

enum Option { REQUIRED, OPTIONAL };

struct OpParamDef {
    std::string name;
    Option option = REQUIRED;
    std::vector<ge::DataType> types;
    std::vector<ge::Format> formats;
    OpParamDef &ParamType(Option value)
    {
        option = value;
        return *this;
    }
    OpParamDef &DataType(std::vector<ge::DataType> value)
    {
        types = value;
        return *this;
    }
    OpParamDef &Format(std::vector<ge::Format> value)
    {
        formats = value;
        return *this;
    }
};

struct OpAttrDef {
    OpAttrDef &AttrType(Option) { return *this; }
    OpAttrDef &Int() { return *this; }
    OpAttrDef &Float() { return *this; }
};

using TilingFunction = ge::graphStatus (*)(gert::TilingContext *);
using ShapeFunction = ge::graphStatus (*)(gert::InferShapeContext *);
using TypeFunction = ge::graphStatus (*)(gert::InferDataTypeContext *);

struct OpAICoreDef {
    TilingFunction tiling = nullptr;
    std::vector<std::string> chips;
    OpAICoreDef &SetTiling(TilingFunction function)
    {
        tiling = function;
        return *this;
    }
    void AddConfig(const char *chip) { chips.push_back(chip); }
};

class OpDef {
public:
    explicit OpDef(const char *) {}
    OpParamDef &Input(const char *name) { return Add(inputs, name); }
    OpParamDef &Output(const char *name) { return Add(outputs, name); }
    OpAttrDef &Attr(const char *) { return attr; }
    OpAICoreDef &AICore() { return core; }
    OpDef &SetInferShape(ShapeFunction function)
    {
        shape = function;
        return *this;
    }
    OpDef &SetInferDataType(TypeFunction function)
    {
        type = function;
        return *this;
    }

    std::vector<OpParamDef> inputs, outputs;
    OpAttrDef attr;
    OpAICoreDef core;
    ShapeFunction shape = nullptr;
    TypeFunction type = nullptr;

private:
    static OpParamDef &Add(std::vector<OpParamDef> &list, const char *name)
    {
        list.push_back({});
        list.back().name = name;
        return list.back();
    }
};

inline std::map<std::string, OpDef> &Registry()
{
    static std::map<std::string, OpDef> registry;
    return registry;
}

} // namespace ops

#define OP_ADD(TYPE) static const bool added_##TYPE = Registry().emplace(#TYPE, TYPE(#TYPE)).second
