// Gradient of weighted_swiglu, computed in fp32. With s = sigmoid(gate), a = gate * s:
//   d gate = grad * p * up * (s + a - a * s), d up = grad * p * a, d p = sum(grad * a * up).
//   grad [T, f], gate_up [T, 2f], probs [T] fp32 -> grad_gate_up [T, 2f], grad_probs [T] fp32.
#include "../../../ascendc/common/kernel.h"
#include "../op_host/weighted_swiglu_tiling.h"

namespace loopmoe {
namespace weighted_swiglu {
namespace {

template <typename T> class WeightedSwigluGrad {
public:
    __aicore__ inline WeightedSwigluGrad(TPipe &pipe, const Tiling &tiling) : t_(tiling)
    {
        const Tile tile = TileOf<T>(tiling.tile_rows, tiling.tile_columns);
        const uint32_t moved = tile.Elements() * sizeof(T);
        const uint32_t wide = tile.Elements() * sizeof(float);
        const uint32_t sums = tile.rows * LANES * sizeof(float);
        pipe.InitBuffer(gates_, BUFFERS, moved);
        pipe.InitBuffer(ups_, BUFFERS, moved);
        pipe.InitBuffer(grads_, BUFFERS, moved);
        pipe.InitBuffer(grad_gates_, BUFFERS, moved);
        pipe.InitBuffer(grad_ups_, BUFFERS, moved);
        pipe.InitBuffer(packed_, BUFFERS, PackedBytes(tile.rows) / BUFFERS);
        pipe.InitBuffer(gate32_, wide);
        pipe.InitBuffer(up32_, wide);
        pipe.InitBuffer(grad32_, wide);
        pipe.InitBuffer(sigmoid_, wide);
        pipe.InitBuffer(silu_, wide);
        pipe.InitBuffer(term_, wide);
        pipe.InitBuffer(dots_, sums);
        pipe.InitBuffer(parts_, sums);
        pipe.InitBuffer(work_, ReduceWork(tile.padded) * sizeof(float));
    }

    __aicore__ inline void Bind(
        TPipe &pipe, GM_ADDR grad, GM_ADDR gate_up, GM_ADDR probs, GM_ADDR grad_gate_up,
        GM_ADDR grad_probs)
    {
        const int64_t elements = t_.rows * t_.width;
        grad_gm_.SetGlobalBuffer(reinterpret_cast<__gm__ T *>(grad), elements);
        gate_up_gm_.SetGlobalBuffer(reinterpret_cast<__gm__ T *>(gate_up), elements * 2);
        grad_gate_up_gm_.SetGlobalBuffer(reinterpret_cast<__gm__ T *>(grad_gate_up), elements * 2);
        grad_probs_gm_.SetGlobalBuffer(reinterpret_cast<__gm__ float *>(grad_probs), t_.rows);
        probs_.Init(pipe, probs, t_.rows);
    }

    __aicore__ inline void Process()
    {
        const Rows mine = RowsOfBlock(t_.rows);
        for (int64_t row = mine.first; row < mine.last; row += t_.tile_rows) {
            const int64_t rows = row + t_.tile_rows < mine.last ? t_.tile_rows : mine.last - row;
            const LocalTensor<float> dots = dots_.Get<float>();
            Duplicate(dots, 0.0f, static_cast<uint32_t>(rows) * LANES);
            for (int64_t column = 0; column < t_.width; column += t_.tile_columns) {
                const int64_t left = t_.width - column;
                Step(row, column, TileOf<T>(rows, left < t_.tile_columns ? left : t_.tile_columns),
                     dots);
            }
            SendSums(packed_, dots, grad_probs_gm_[row], rows);
        }
    }

private:
    __aicore__ inline void Step(
        int64_t row, int64_t column, const Tile &tile, const LocalTensor<float> &dots)
    {
        const uint32_t n = tile.Elements();
        const int64_t begin = row * t_.width * 2 + column;
        LocalTensor<T> gate = FetchTile(gates_, gate_up_gm_[begin], tile, t_.width * 2);
        LocalTensor<T> up = FetchTile(ups_, gate_up_gm_[begin + t_.width], tile, t_.width * 2);
        LocalTensor<T> grad
            = FetchTile(grads_, grad_gm_[row * t_.width + column], tile, t_.width);
        const LocalTensor<float> g = Widen(gate, gate32_.Get<float>(), n);
        const LocalTensor<float> u = Widen(up, up32_.Get<float>(), n);
        const LocalTensor<float> d = Widen(grad, grad32_.Get<float>(), n);
        Activate(g, n);
        const LocalTensor<float> sigmoid = sigmoid_.Get<float>();
        const LocalTensor<float> silu = silu_.Get<float>();
        const LocalTensor<float> term = term_.Get<float>();
        Mul(term, silu, u, n);
        Settle();
        Mul(term, term, d, n);
        AddRowSums(dots, term, parts_.Get<float>(), work_.Get<float>(), tile);
        const LocalTensor<float> weighted = grad32_.Get<float>();
        for (uint32_t r = 0; r < tile.rows; ++r) {
            const uint32_t at = r * tile.padded;
            Muls(weighted[at], d[at], probs_.At(row + r), tile.padded);
        }
        Mul(term, silu, sigmoid, n);
        Add(sigmoid, sigmoid, silu, n);
        Settle();
        Sub(sigmoid, sigmoid, term, n);
        Settle();
        Mul(sigmoid, sigmoid, u, n);
        Settle();
        gates_.FreeTensor(gate);
        ups_.FreeTensor(up);
        grads_.FreeTensor(grad);

        LocalTensor<T> grad_up = grad_ups_.AllocTensor<T>();
        const LocalTensor<float> wide_up = Wide(grad_up, silu);
        Mul(wide_up, weighted, silu, n);
        Narrow(grad_up, wide_up, n);
        SendTile(grad_ups_, grad_up, grad_gate_up_gm_[begin + t_.width], tile, t_.width * 2);

        LocalTensor<T> grad_gate = grad_gates_.AllocTensor<T>();
        const LocalTensor<float> wide_gate = Wide(grad_gate, sigmoid);
        Mul(wide_gate, weighted, sigmoid, n);
        Narrow(grad_gate, wide_gate, n);
        SendTile(grad_gates_, grad_gate, grad_gate_up_gm_[begin], tile, t_.width * 2);
    }

    // sigmoid_ and silu_ of the gate.
    __aicore__ inline void Activate(const LocalTensor<float> &gate, uint32_t n)
    {
        const LocalTensor<float> sigmoid = sigmoid_.Get<float>();
        const LocalTensor<float> silu = silu_.Get<float>();
        const LocalTensor<float> one = term_.Get<float>();
        Settle();
        Duplicate(one, 1.0f, n);
        Muls(sigmoid, gate, -1.0f, n);
        Settle();
        Exp(sigmoid, sigmoid, n);
        Settle();
        Adds(sigmoid, sigmoid, 1.0f, n);
        Settle();
        Div(silu, gate, sigmoid, n);
        Div(sigmoid, one, sigmoid, n);
        Settle();
    }

    const Tiling t_;
    GlobalTensor<T> grad_gm_, gate_up_gm_, grad_gate_up_gm_;
    GlobalTensor<float> grad_probs_gm_;
    ScalarWindow<float> probs_;
    QueueIn gates_, ups_, grads_;
    QueueOut grad_gates_, grad_ups_, packed_;
    TBuf<TPosition::VECCALC> gate32_, up32_, grad32_, sigmoid_, silu_, term_, dots_, parts_, work_;
};

template <typename T>
__aicore__ inline void Run(
    const Tiling &tiling, GM_ADDR grad, GM_ADDR gate_up, GM_ADDR probs, GM_ADDR grad_gate_up,
    GM_ADDR grad_probs)
{
    TPipe pipe;
    WeightedSwigluGrad<T> kernel(pipe, tiling);
    kernel.Bind(pipe, grad, gate_up, probs, grad_gate_up, grad_probs);
    kernel.Process();
}

} // namespace
} // namespace weighted_swiglu
} // namespace loopmoe

extern "C" __global__ __aicore__ void loopmoe_weighted_swiglu_grad(
    GM_ADDR grad, GM_ADDR gate_up, GM_ADDR probs, GM_ADDR grad_gate_up, GM_ADDR grad_probs,
    GM_ADDR workspace, GM_ADDR tiling)
{
    KERNEL_TASK_TYPE_DEFAULT(KERNEL_TYPE_AIV_ONLY);
    REGISTER_TILING_DEFAULT(loopmoe::weighted_swiglu::Tiling);
    GET_TILING_DATA_WITH_STRUCT(loopmoe::weighted_swiglu::Tiling, plan, tiling);
    (void)workspace;
    if (plan.data_type == loopmoe::BFLOAT16) {
        loopmoe::weighted_swiglu::Run<bfloat16_t>(
            plan, grad, gate_up, probs, grad_gate_up, grad_probs);
    } else {
        loopmoe::weighted_swiglu::Run<float>(plan, grad, gate_up, probs, grad_gate_up, grad_probs);
    }
}
