// out[t] = sum over k, in this order, of p[t, k] * y[slots[t, k]], accumulated in fp32.
//   y [R, H], slots [T, K] int32 (-1: dropped), probs [T, K] fp32 -> out [T, H].
// Without weights (tiling) probs is not read and p is 1: the backward of permute.
#include "../../../ascendc/common/kernel.h"
#include "../op_host/combine_tiling.h"

namespace loopmoe {
namespace combine {
namespace {

template <typename T> class Combine {
public:
    __aicore__ inline Combine(TPipe &pipe, const Tiling &tiling) : t_(tiling)
    {
        const uint32_t elements = TileOf<T>(1, tiling.tile_columns).Elements();
        pipe.InitBuffer(rows_, BUFFERS, elements * sizeof(T));
        pipe.InitBuffer(outs_, BUFFERS, elements * sizeof(T));
        pipe.InitBuffer(row32_, elements * sizeof(float));
        pipe.InitBuffer(sum32_, elements * sizeof(float));
    }

    __aicore__ inline void Bind(
        TPipe &pipe, GM_ADDR y, GM_ADDR slots, GM_ADDR probs, GM_ADDR out)
    {
        y_gm_.SetGlobalBuffer(reinterpret_cast<__gm__ T *>(y), t_.rows * t_.hidden);
        out_gm_.SetGlobalBuffer(reinterpret_cast<__gm__ T *>(out), t_.tokens * t_.hidden);
        slots_.Init(pipe, slots, t_.tokens * t_.top_k);
        if (t_.weighted) {
            probs_.Init(pipe, probs, t_.tokens * t_.top_k);
        }
    }

    __aicore__ inline void Process()
    {
        const Rows mine = RowsOfBlock(t_.tokens);
        for (int64_t token = mine.first; token < mine.last; ++token) {
            for (int64_t column = 0; column < t_.hidden; column += t_.tile_columns) {
                const int64_t left = t_.hidden - column;
                Step(token, column, TileOf<T>(1, left < t_.tile_columns ? left : t_.tile_columns));
            }
        }
    }

private:
    __aicore__ inline void Step(int64_t token, int64_t column, const Tile &tile)
    {
        LocalTensor<T> out = outs_.AllocTensor<T>();
        const LocalTensor<float> sum = Wide(out, sum32_.Get<float>());
        bool empty = true;
        for (int64_t k = 0; k < t_.top_k; ++k) {
            const int64_t pair = token * t_.top_k + k;
            const int64_t slot = slots_.At(pair);
            if (slot >= 0) {
                const float weight = t_.weighted ? probs_.At(pair) : 1.0f;
                AddRow(sum, slot * t_.hidden + column, weight, tile, empty);
                empty = false;
            }
        }
        if (empty) {
            Duplicate(sum, 0.0f, tile.padded);
        }
        Narrow(out, sum, tile.padded);
        SendTile(outs_, out, out_gm_[token * t_.hidden + column], tile, t_.hidden);
    }

    // A product and a sum, not Axpy: each rounds once, whatever the device fuses.
    __aicore__ inline void AddRow(
        const LocalTensor<float> &sum, int64_t begin, float weight, const Tile &tile, bool first)
    {
        const uint32_t n = tile.padded;
        const LocalTensor<float> scratch = row32_.Get<float>();
        LocalTensor<T> row = FetchTile(rows_, y_gm_[begin], tile, tile.columns);
        LocalTensor<float> value = Widen(row, scratch, n);
        Settle();
        if (first) {
            Muls(sum, value, weight, n);
        } else {
            if (t_.weighted) {
                Muls(scratch, value, weight, n);
                value = scratch;
                Settle();
            }
            Add(sum, sum, value, n);
        }
        rows_.FreeTensor(row);
    }

    const Tiling t_;
    GlobalTensor<T> y_gm_, out_gm_;
    ScalarWindow<int32_t> slots_;
    ScalarWindow<float> probs_;
    QueueIn rows_;
    QueueOut outs_;
    TBuf<TPosition::VECCALC> row32_, sum32_;
};

template <typename T>
__aicore__ inline void Run(
    const Tiling &tiling, GM_ADDR y, GM_ADDR slots, GM_ADDR probs, GM_ADDR out)
{
    TPipe pipe;
    Combine<T> kernel(pipe, tiling);
    kernel.Bind(pipe, y, slots, probs, out);
    kernel.Process();
}

} // namespace
} // namespace combine
} // namespace loopmoe

extern "C" __global__ __aicore__ void loopmoe_combine(
    GM_ADDR y, GM_ADDR slots, GM_ADDR probs, GM_ADDR out, GM_ADDR workspace, GM_ADDR tiling)
{
    KERNEL_TASK_TYPE_DEFAULT(KERNEL_TYPE_AIV_ONLY);
    REGISTER_TILING_DEFAULT(loopmoe::combine::Tiling);
    GET_TILING_DATA_WITH_STRUCT(loopmoe::combine::Tiling, plan, tiling);
    (void)workspace;
    if (plan.data_type == loopmoe::BFLOAT16) {
        loopmoe::combine::Run<bfloat16_t>(plan, y, slots, probs, out);
    } else {
        loopmoe::combine::Run<float>(plan, y, slots, probs, out);
    }
}
