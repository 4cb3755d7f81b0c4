// out = silu(gate) * up * p, computed in fp32 and rounded once.
//   gate_up [T, 2f] (gate | up), probs [T] fp32 -> out [T, f] in the type of gate_up.
#include "../../../ascendc/common/kernel.h"
#include "../op_host/weighted_swiglu_tiling.h"

namespace loopmoe {
namespace weighted_swiglu {
namespace {

template <typename T> class WeightedSwiglu {
public:
    __aicore__ inline WeightedSwiglu(TPipe &pipe, const Tiling &tiling) : t_(tiling)
    {
        const uint32_t elements
            = TileOf<T>(tiling.tile_rows, tiling.tile_columns).Elements();
        pipe.InitBuffer(gates_, BUFFERS, elements * sizeof(T));
        pipe.InitBuffer(ups_, BUFFERS, elements * sizeof(T));
        pipe.InitBuffer(outs_, BUFFERS, elements * sizeof(T));
        pipe.InitBuffer(gate32_, elements * sizeof(float));
        pipe.InitBuffer(up32_, elements * sizeof(float));
        pipe.InitBuffer(silu_, elements * sizeof(float));
    }

    __aicore__ inline void Bind(TPipe &pipe, GM_ADDR gate_up, GM_ADDR probs, GM_ADDR out)
    {
        gate_up_gm_.SetGlobalBuffer(reinterpret_cast<__gm__ T *>(gate_up), t_.rows * t_.width * 2);
        out_gm_.SetGlobalBuffer(reinterpret_cast<__gm__ T *>(out), t_.rows * t_.width);
        probs_.Init(pipe, probs, t_.rows);
    }

    __aicore__ inline void Process()
    {
        const Rows mine = RowsOfBlock(t_.rows);
        for (int64_t row = mine.first; row < mine.last; row += t_.tile_rows) {
            const int64_t rows = row + t_.tile_rows < mine.last ? t_.tile_rows : mine.last - row;
            for (int64_t column = 0; column < t_.width; column += t_.tile_columns) {
                const int64_t left = t_.width - column;
                Step(row, column, TileOf<T>(rows, left < t_.tile_columns ? left : t_.tile_columns));
            }
        }
    }

private:
    __aicore__ inline void Step(int64_t row, int64_t column, const Tile &tile)
    {
        const uint32_t n = tile.Elements();
        const int64_t begin = row * t_.width * 2 + column;
        LocalTensor<T> gate = FetchTile(gates_, gate_up_gm_[begin], tile, t_.width * 2);
        LocalTensor<T> up = FetchTile(ups_, gate_up_gm_[begin + t_.width], tile, t_.width * 2);
        const LocalTensor<float> g = Widen(gate, gate32_.Get<float>(), n);
        const LocalTensor<float> u = Widen(up, up32_.Get<float>(), n);
        const LocalTensor<float> silu = silu_.Get<float>();
        Settle();
        // Div, not Reciprocal: the latter is an approximation on the device.
        Muls(silu, g, -1.0f, n);
        Settle();
        Exp(silu, silu, n);
        Settle();
        Adds(silu, silu, 1.0f, n);
        Settle();
        Div(silu, g, silu, n);
        Settle();
        Mul(silu, silu, u, n);
        Settle();
        gates_.FreeTensor(gate);
        ups_.FreeTensor(up);
        LocalTensor<T> out = outs_.AllocTensor<T>();
        const LocalTensor<float> wide = Wide(out, silu);
        for (uint32_t r = 0; r < tile.rows; ++r) {
            const uint32_t at = r * tile.padded;
            Muls(wide[at], silu[at], probs_.At(row + r), tile.padded);
        }
        Narrow(out, wide, n);
        SendTile(outs_, out, out_gm_[row * t_.width + column], tile, t_.width);
    }

    const Tiling t_;
    GlobalTensor<T> gate_up_gm_, out_gm_;
    ScalarWindow<float> probs_;
    QueueIn gates_, ups_;
    QueueOut outs_;
    TBuf<TPosition::VECCALC> gate32_, up32_, silu_;
};

template <typename T>
__aicore__ inline void Run(const Tiling &tiling, GM_ADDR gate_up, GM_ADDR probs, GM_ADDR out)
{
    TPipe pipe;
    WeightedSwiglu<T> kernel(pipe, tiling);
    kernel.Bind(pipe, gate_up, probs, out);
    kernel.Process();
}

} // namespace
} // namespace weighted_swiglu
} // namespace loopmoe

extern "C" __global__ __aicore__ void loopmoe_weighted_swiglu(
    GM_ADDR gate_up, GM_ADDR probs, GM_ADDR out, GM_ADDR workspace, GM_ADDR tiling)
{
    KERNEL_TASK_TYPE_DEFAULT(KERNEL_TYPE_AIV_ONLY);
    REGISTER_TILING_DEFAULT(loopmoe::weighted_swiglu::Tiling);
    GET_TILING_DATA_WITH_STRUCT(loopmoe::weighted_swiglu::Tiling, plan, tiling);
    (void)workspace;
    if (plan.data_type == loopmoe::BFLOAT16) {
        loopmoe::weighted_swiglu::Run<bfloat16_t>(plan, gate_up, probs, out);
    } else {
        loopmoe::weighted_swiglu::Run<float>(plan, gate_up, probs, out);
    }
}
