// Gradient of adaln_norm, in fp32. With n = hidden * inverse and m = grad * (1 + gamma):
//   d gamma = grad * n, d hidden = (m - n * mean(m * n)) * inverse; d beta is grad itself.
//   grad, hidden, gamma [T, d], inverse [T] fp32 -> grad_hidden, grad_gamma [T, d].
// A row that fits in one tile is read once; a longer one is read a second time.
#include "../../../ascendc/common/kernel.h"
#include "../op_host/adaln_norm_tiling.h"

namespace loopmoe {
namespace adaln_norm {
namespace {

template <typename T> class AdalnNormGrad {
public:
    __aicore__ inline AdalnNormGrad(TPipe &pipe, const Tiling &tiling)
        : t_(tiling), whole_(tiling.tile_columns >= tiling.width)
    {
        const Tile tile = TileOf<T>(tiling.tile_rows, tiling.tile_columns);
        const uint32_t moved = tile.Elements() * sizeof(T);
        const uint32_t wide = tile.Elements() * sizeof(float);
        const uint32_t sums = tile.rows * LANES * sizeof(float);
        pipe.InitBuffer(grads_, BUFFERS, moved);
        pipe.InitBuffer(hiddens_, BUFFERS, moved);
        pipe.InitBuffer(gammas_, BUFFERS, moved);
        pipe.InitBuffer(grad_hiddens_, BUFFERS, moved);
        pipe.InitBuffer(grad_gammas_, BUFFERS, moved);
        pipe.InitBuffer(grad32_, wide);
        pipe.InitBuffer(normed_, wide);
        pipe.InitBuffer(scaled_, wide);
        pipe.InitBuffer(term_, wide);
        pipe.InitBuffer(along_, sums);
        pipe.InitBuffer(parts_, sums);
        pipe.InitBuffer(work_, ReduceWork(tile.padded) * sizeof(float));
    }

    __aicore__ inline void Bind(
        TPipe &pipe, GM_ADDR grad, GM_ADDR hidden, GM_ADDR gamma, GM_ADDR inverse,
        GM_ADDR grad_hidden, GM_ADDR grad_gamma)
    {
        const int64_t elements = t_.rows * t_.width;
        grad_gm_.SetGlobalBuffer(reinterpret_cast<__gm__ T *>(grad), elements);
        hidden_gm_.SetGlobalBuffer(reinterpret_cast<__gm__ T *>(hidden), elements);
        gamma_gm_.SetGlobalBuffer(reinterpret_cast<__gm__ T *>(gamma), elements);
        grad_hidden_gm_.SetGlobalBuffer(reinterpret_cast<__gm__ T *>(grad_hidden), elements);
        grad_gamma_gm_.SetGlobalBuffer(reinterpret_cast<__gm__ T *>(grad_gamma), elements);
        inverses_.Init(pipe, inverse, t_.rows);
    }

    __aicore__ inline void Process()
    {
        const Rows mine = RowsOfBlock(t_.rows);
        for (int64_t row = mine.first; row < mine.last; row += t_.tile_rows) {
            Step(row, row + t_.tile_rows < mine.last ? t_.tile_rows : mine.last - row);
        }
    }

private:
    __aicore__ inline Tile TileAt(int64_t rows, int64_t column) const
    {
        const int64_t left = t_.width - column;
        return TileOf<T>(rows, left < t_.tile_columns ? left : t_.tile_columns);
    }

    __aicore__ inline void Step(int64_t row, int64_t rows)
    {
        const LocalTensor<float> along = along_.Get<float>();
        const uint32_t lanes = static_cast<uint32_t>(rows) * LANES;
        Duplicate(along, 0.0f, lanes);
        for (int64_t column = 0; column < t_.width; column += t_.tile_columns) {
            const Tile tile = TileAt(rows, column);
            Prepare(row, column, tile, true);
            Mul(term_.Get<float>(), scaled_.Get<float>(), normed_.Get<float>(), tile.Elements());
            AddRowSums(along, term_.Get<float>(), parts_.Get<float>(), work_.Get<float>(), tile);
        }
        Muls(along, along, t_.inverse_width, lanes);
        Sync<HardEvent::V_S>();
        for (int64_t column = 0; column < t_.width; column += t_.tile_columns) {
            const Tile tile = TileAt(rows, column);
            if (!whole_) {
                Prepare(row, column, tile, false);
            }
            Project(row, column, tile, along);
        }
        Sync<HardEvent::S_V>(); // the scalar unit is done with `along`
    }

    // normed_ = hidden * inverse, scaled_ = grad * (1 + gamma), and grad_gamma if asked for.
    __aicore__ inline void Prepare(
        int64_t row, int64_t column, const Tile &tile, bool write_grad_gamma)
    {
        const uint32_t n = tile.Elements();
        const int64_t begin = row * t_.width + column;
        const LocalTensor<float> normed = normed_.Get<float>();
        const LocalTensor<float> scaled = scaled_.Get<float>();
        LocalTensor<T> grad = FetchTile(grads_, grad_gm_[begin], tile, t_.width);
        LocalTensor<T> hidden = FetchTile(hiddens_, hidden_gm_[begin], tile, t_.width);
        LocalTensor<T> gamma = FetchTile(gammas_, gamma_gm_[begin], tile, t_.width);
        const LocalTensor<float> d = Widen(grad, grad32_.Get<float>(), n);
        const LocalTensor<float> x = Widen(hidden, normed, n);
        const LocalTensor<float> g = Widen(gamma, scaled, n);
        Settle();
        for (uint32_t r = 0; r < tile.rows; ++r) {
            const uint32_t at = r * tile.padded;
            Muls(normed[at], x[at], inverses_.At(row + r), tile.padded);
        }
        Adds(scaled, g, 1.0f, n);
        Settle();
        Mul(scaled, scaled, d, n);
        if (write_grad_gamma) {
            LocalTensor<T> out = grad_gammas_.AllocTensor<T>();
            const LocalTensor<float> wide = Wide(out, term_.Get<float>());
            Mul(wide, d, normed, n);
            Narrow(out, wide, n);
            SendTile(grad_gammas_, out, grad_gamma_gm_[begin], tile, t_.width);
        }
        Settle();
        grads_.FreeTensor(grad);
        hiddens_.FreeTensor(hidden);
        gammas_.FreeTensor(gamma);
    }

    __aicore__ inline void Project(
        int64_t row, int64_t column, const Tile &tile, const LocalTensor<float> &along)
    {
        const uint32_t n = tile.Elements();
        const LocalTensor<float> normed = normed_.Get<float>();
        const LocalTensor<float> term = term_.Get<float>();
        for (uint32_t r = 0; r < tile.rows; ++r) {
            const uint32_t at = r * tile.padded;
            Muls(term[at], normed[at], along.GetValue(r * LANES), tile.padded);
        }
        Settle();
        Sub(term, scaled_.Get<float>(), term, n);
        Settle();
        LocalTensor<T> out = grad_hiddens_.AllocTensor<T>();
        const LocalTensor<float> wide = Wide(out, term);
        for (uint32_t r = 0; r < tile.rows; ++r) {
            const uint32_t at = r * tile.padded;
            Muls(wide[at], term[at], inverses_.At(row + r), tile.padded);
        }
        Narrow(out, wide, n);
        SendTile(grad_hiddens_, out, grad_hidden_gm_[row * t_.width + column], tile, t_.width);
    }

    const Tiling t_;
    const bool whole_;
    GlobalTensor<T> grad_gm_, hidden_gm_, gamma_gm_, grad_hidden_gm_, grad_gamma_gm_;
    ScalarWindow<float> inverses_;
    QueueIn grads_, hiddens_, gammas_;
    QueueOut grad_hiddens_, grad_gammas_;
    TBuf<TPosition::VECCALC> grad32_, normed_, scaled_, term_, along_, parts_, work_;
};

template <typename T>
__aicore__ inline void Run(
    const Tiling &tiling, GM_ADDR grad, GM_ADDR hidden, GM_ADDR gamma, GM_ADDR inverse,
    GM_ADDR grad_hidden, GM_ADDR grad_gamma)
{
    TPipe pipe;
    AdalnNormGrad<T> kernel(pipe, tiling);
    kernel.Bind(pipe, grad, hidden, gamma, inverse, grad_hidden, grad_gamma);
    kernel.Process();
}

} // namespace
} // namespace adaln_norm
} // namespace loopmoe

extern "C" __global__ __aicore__ void loopmoe_adaln_norm_grad(
    GM_ADDR grad, GM_ADDR hidden, GM_ADDR gamma, GM_ADDR inverse, GM_ADDR grad_hidden,
    GM_ADDR grad_gamma, GM_ADDR workspace, GM_ADDR tiling)
{
    KERNEL_TASK_TYPE_DEFAULT(KERNEL_TYPE_AIV_ONLY);
    REGISTER_TILING_DEFAULT(loopmoe::adaln_norm::Tiling);
    GET_TILING_DATA_WITH_STRUCT(loopmoe::adaln_norm::Tiling, plan, tiling);
    (void)workspace;
    if (plan.data_type == loopmoe::BFLOAT16) {
        loopmoe::adaln_norm::Run<bfloat16_t>(
            plan, grad, hidden, gamma, inverse, grad_hidden, grad_gamma);
    } else {
        loopmoe::adaln_norm::Run<float>(
            plan, grad, hidden, gamma, inverse, grad_hidden, grad_gamma);
    }
}
