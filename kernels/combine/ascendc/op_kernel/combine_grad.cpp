// Gradient of combine in one read of y and one of grad:
//   grad_y[slots[t, k]] = p[t, k] * grad[t], grad_probs[t, k] = <grad[t], y[slots[t, k]]>.
//   grad [T, H], y [R, H], slots [T, K] int32, probs [T, K] fp32
//   -> grad_y [R, H], grad_probs [T, K] fp32 (0 where dropped).
// A row of y belongs to one slot at most; rows of grad_y that belong to none are not written.
#include "../../../ascendc/common/kernel.h"
#include "../op_host/combine_tiling.h"

namespace loopmoe {
namespace combine {
namespace {

template <typename T> class CombineGrad {
public:
    __aicore__ inline CombineGrad(TPipe &pipe, const Tiling &tiling) : t_(tiling)
    {
        const uint32_t elements = TileOf<T>(1, tiling.tile_columns).Elements();
        pipe.InitBuffer(grads_, BUFFERS, elements * sizeof(T));
        pipe.InitBuffer(rows_, BUFFERS, elements * sizeof(T));
        pipe.InitBuffer(grad_rows_, BUFFERS, elements * sizeof(T));
        const uint32_t pairs = static_cast<uint32_t>(tiling.tile_tokens * tiling.top_k);
        pipe.InitBuffer(packed_, BUFFERS, PackedBytes(pairs) / BUFFERS);
        pipe.InitBuffer(dots_, pairs * LANES * sizeof(float));
        pipe.InitBuffer(grad32_, elements * sizeof(float));
        pipe.InitBuffer(row32_, elements * sizeof(float));
        pipe.InitBuffer(part_, LANES * sizeof(float));
        pipe.InitBuffer(work_, ReduceWork(elements) * sizeof(float));
    }

    __aicore__ inline void Bind(
        TPipe &pipe, GM_ADDR grad, GM_ADDR y, GM_ADDR slots, GM_ADDR probs, GM_ADDR grad_y,
        GM_ADDR grad_probs)
    {
        const int64_t pairs = t_.tokens * t_.top_k;
        grad_gm_.SetGlobalBuffer(reinterpret_cast<__gm__ T *>(grad), t_.tokens * t_.hidden);
        y_gm_.SetGlobalBuffer(reinterpret_cast<__gm__ T *>(y), t_.rows * t_.hidden);
        grad_y_gm_.SetGlobalBuffer(reinterpret_cast<__gm__ T *>(grad_y), t_.rows * t_.hidden);
        grad_probs_gm_.SetGlobalBuffer(reinterpret_cast<__gm__ float *>(grad_probs), pairs);
        slots_.Init(pipe, slots, pairs);
        probs_.Init(pipe, probs, pairs);
    }

    __aicore__ inline void Process()
    {
        const Rows mine = RowsOfBlock(t_.tokens);
        for (int64_t token = mine.first; token < mine.last; token += t_.tile_tokens) {
            const int64_t tokens
                = token + t_.tile_tokens < mine.last ? t_.tile_tokens : mine.last - token;
            const int64_t pairs = tokens * t_.top_k;
            const LocalTensor<float> dots = dots_.Get<float>();
            Duplicate(dots, 0.0f, static_cast<uint32_t>(pairs) * LANES);
            for (int64_t i = 0; i < tokens; ++i) {
                Token(token + i, dots[static_cast<uint32_t>(i * t_.top_k) * LANES]);
            }
            SendSums(packed_, dots, grad_probs_gm_[token * t_.top_k], pairs);
        }
    }

private:
    __aicore__ inline void Token(int64_t token, const LocalTensor<float> &dots)
    {
        for (int64_t column = 0; column < t_.hidden; column += t_.tile_columns) {
            const int64_t left = t_.hidden - column;
            const Tile tile = TileOf<T>(1, left < t_.tile_columns ? left : t_.tile_columns);
            LocalTensor<T> grad
                = FetchTile(grads_, grad_gm_[token * t_.hidden + column], tile, t_.hidden);
            const LocalTensor<float> d = Widen(grad, grad32_.Get<float>(), tile.padded);
            for (int64_t k = 0; k < t_.top_k; ++k) {
                const int64_t pair = token * t_.top_k + k;
                const int64_t slot = slots_.At(pair);
                if (slot >= 0) {
                    Pair(d, slot * t_.hidden + column, probs_.At(pair), tile,
                         dots[static_cast<uint32_t>(k) * LANES]);
                }
            }
            grads_.FreeTensor(grad);
            Settle();
        }
    }

    __aicore__ inline void Pair(
        const LocalTensor<float> &grad, int64_t begin, float weight, const Tile &tile,
        const LocalTensor<float> &dot)
    {
        const uint32_t n = tile.padded;
        const LocalTensor<float> scratch = row32_.Get<float>();
        LocalTensor<T> row = FetchTile(rows_, y_gm_[begin], tile, tile.columns);
        const LocalTensor<float> y = Widen(row, scratch, n);
        Settle();
        Mul(scratch, y, grad, n);
        rows_.FreeTensor(row);
        AddRowSums(dot, scratch, part_.Get<float>(), work_.Get<float>(), tile);
        LocalTensor<T> out = grad_rows_.AllocTensor<T>();
        const LocalTensor<float> wide = Wide(out, scratch);
        Muls(wide, grad, weight, n);
        Narrow(out, wide, n);
        SendTile(grad_rows_, out, grad_y_gm_[begin], tile, tile.columns);
    }

    const Tiling t_;
    GlobalTensor<T> grad_gm_, y_gm_, grad_y_gm_;
    GlobalTensor<float> grad_probs_gm_;
    ScalarWindow<int32_t> slots_;
    ScalarWindow<float> probs_;
    QueueIn grads_, rows_;
    QueueOut grad_rows_, packed_;
    TBuf<TPosition::VECCALC> grad32_, row32_, dots_, part_, work_;
};

template <typename T>
__aicore__ inline void Run(
    const Tiling &tiling, GM_ADDR grad, GM_ADDR y, GM_ADDR slots, GM_ADDR probs, GM_ADDR grad_y,
    GM_ADDR grad_probs)
{
    TPipe pipe;
    CombineGrad<T> kernel(pipe, tiling);
    kernel.Bind(pipe, grad, y, slots, probs, grad_y, grad_probs);
    kernel.Process();
}

} // namespace
} // namespace combine
} // namespace loopmoe

extern "C" __global__ __aicore__ void loopmoe_combine_grad(
    GM_ADDR grad, GM_ADDR y, GM_ADDR slots, GM_ADDR probs, GM_ADDR grad_y, GM_ADDR grad_probs,
    GM_ADDR workspace, GM_ADDR tiling)
{
    KERNEL_TASK_TYPE_DEFAULT(KERNEL_TYPE_AIV_ONLY);
    REGISTER_TILING_DEFAULT(loopmoe::combine::Tiling);
    GET_TILING_DATA_WITH_STRUCT(loopmoe::combine::Tiling, plan, tiling);
    (void)workspace;
    if (plan.data_type == loopmoe::BFLOAT16) {
        loopmoe::combine::Run<bfloat16_t>(plan, grad, y, slots, probs, grad_y, grad_probs);
    } else {
        loopmoe::combine::Run<float>(plan, grad, y, slots, probs, grad_y, grad_probs);
    }
}
