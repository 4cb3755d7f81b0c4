// out = (1 + gamma) * hidden * inverse + beta, inverse = 1 / sqrt(mean(hidden^2) + eps), in fp32.
//   hidden, gamma, beta [T, d] -> out [T, d], inverse [T] fp32 (kept for the gradient).
// A row that fits in one tile is read once; a longer one is read a second time.
#include "../../../ascendc/common/kernel.h"
#include "../op_host/adaln_norm_tiling.h"

namespace loopmoe {
namespace adaln_norm {
namespace {

template <typename T> class AdalnNorm {
public:
    __aicore__ inline AdalnNorm(TPipe &pipe, const Tiling &tiling)
        : t_(tiling), whole_(tiling.tile_columns >= tiling.width)
    {
        const Tile tile = TileOf<T>(tiling.tile_rows, tiling.tile_columns);
        const uint32_t moved = tile.Elements() * sizeof(T);
        const uint32_t wide = tile.Elements() * sizeof(float);
        const uint32_t sums = tile.rows * LANES * sizeof(float);
        pipe.InitBuffer(hiddens_, BUFFERS, moved);
        pipe.InitBuffer(gammas_, BUFFERS, moved);
        pipe.InitBuffer(betas_, BUFFERS, moved);
        pipe.InitBuffer(outs_, BUFFERS, moved);
        pipe.InitBuffer(packed_, BUFFERS, PackedBytes(tile.rows) / BUFFERS);
        pipe.InitBuffer(hidden32_, wide);
        pipe.InitBuffer(gamma32_, wide);
        pipe.InitBuffer(beta32_, wide);
        pipe.InitBuffer(normed_, wide);
        pipe.InitBuffer(inverses_, sums);
        pipe.InitBuffer(parts_, sums);
        pipe.InitBuffer(ones_, sums);
        pipe.InitBuffer(work_, ReduceWork(tile.padded) * sizeof(float));
    }

    __aicore__ inline void Bind(
        GM_ADDR hidden, GM_ADDR gamma, GM_ADDR beta, GM_ADDR out, GM_ADDR inverse)
    {
        const int64_t elements = t_.rows * t_.width;
        hidden_gm_.SetGlobalBuffer(reinterpret_cast<__gm__ T *>(hidden), elements);
        gamma_gm_.SetGlobalBuffer(reinterpret_cast<__gm__ T *>(gamma), elements);
        beta_gm_.SetGlobalBuffer(reinterpret_cast<__gm__ T *>(beta), elements);
        out_gm_.SetGlobalBuffer(reinterpret_cast<__gm__ T *>(out), elements);
        inverse_gm_.SetGlobalBuffer(reinterpret_cast<__gm__ float *>(inverse), t_.rows);
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
        const LocalTensor<float> inverses = inverses_.Get<float>();
        Duplicate(inverses, 0.0f, static_cast<uint32_t>(rows) * LANES);
        LocalTensor<T> hidden;
        for (int64_t column = 0; column < t_.width; column += t_.tile_columns) {
            const Tile tile = TileAt(rows, column);
            hidden = Fetch(hiddens_, hidden_gm_, row, column, tile);
            const LocalTensor<float> x = Widen(hidden, hidden32_.Get<float>(), tile.Elements());
            const LocalTensor<float> square = normed_.Get<float>();
            Settle();
            Mul(square, x, x, tile.Elements());
            AddRowSums(inverses, square, parts_.Get<float>(), work_.Get<float>(), tile);
            if (!whole_) {
                hiddens_.FreeTensor(hidden);
            }
        }
        Invert(inverses, static_cast<uint32_t>(rows) * LANES);
        Sync<HardEvent::V_S>();
        for (int64_t column = 0; column < t_.width; column += t_.tile_columns) {
            const Tile tile = TileAt(rows, column);
            if (!whole_) {
                hidden = Fetch(hiddens_, hidden_gm_, row, column, tile);
                Widen(hidden, hidden32_.Get<float>(), tile.Elements());
            }
            Modulate(row, column, tile, Wide(hidden, hidden32_.Get<float>()), inverses);
            hiddens_.FreeTensor(hidden);
        }
        Sync<HardEvent::S_V>(); // the scalar unit is done with this buffer
        SendSums(packed_, inverses, inverse_gm_[row], rows);
    }

    __aicore__ inline LocalTensor<T> Fetch(
        QueueIn &queue, const GlobalTensor<T> &source, int64_t row, int64_t column,
        const Tile &tile)
    {
        return FetchTile(queue, source[row * t_.width + column], tile, t_.width);
    }

    // Sums of squares to 1 / sqrt(mean + eps). Sqrt and Div: Rsqrt is an approximation.
    __aicore__ inline void Invert(const LocalTensor<float> &sums, uint32_t n)
    {
        const LocalTensor<float> ones = ones_.Get<float>();
        Duplicate(ones, 1.0f, n);
        Muls(sums, sums, t_.inverse_width, n);
        Settle();
        Adds(sums, sums, t_.eps, n);
        Settle();
        Sqrt(sums, sums, n);
        Settle();
        Div(sums, ones, sums, n);
    }

    __aicore__ inline void Modulate(
        int64_t row, int64_t column, const Tile &tile, const LocalTensor<float> &x,
        const LocalTensor<float> &inverses)
    {
        const uint32_t n = tile.Elements();
        const LocalTensor<float> normed = normed_.Get<float>();
        const LocalTensor<float> scale = gamma32_.Get<float>();
        LocalTensor<T> gamma = Fetch(gammas_, gamma_gm_, row, column, tile);
        LocalTensor<T> beta = Fetch(betas_, beta_gm_, row, column, tile);
        const LocalTensor<float> g = Widen(gamma, scale, n);
        const LocalTensor<float> b = Widen(beta, beta32_.Get<float>(), n);
        Settle();
        for (uint32_t r = 0; r < tile.rows; ++r) {
            const uint32_t at = r * tile.padded;
            Muls(normed[at], x[at], inverses.GetValue(r * LANES), tile.padded);
        }
        Adds(scale, g, 1.0f, n);
        Settle();
        Mul(normed, normed, scale, n);
        Settle();
        LocalTensor<T> out = outs_.AllocTensor<T>();
        const LocalTensor<float> wide = Wide(out, normed);
        Add(wide, normed, b, n);
        gammas_.FreeTensor(gamma);
        betas_.FreeTensor(beta);
        Narrow(out, wide, n);
        SendTile(outs_, out, out_gm_[row * t_.width + column], tile, t_.width);
    }

    const Tiling t_;
    const bool whole_;
    GlobalTensor<T> hidden_gm_, gamma_gm_, beta_gm_, out_gm_;
    GlobalTensor<float> inverse_gm_;
    QueueIn hiddens_, gammas_, betas_;
    QueueOut outs_, packed_;
    TBuf<TPosition::VECCALC> hidden32_, gamma32_, beta32_, normed_, inverses_, parts_, ones_, work_;
};

template <typename T>
__aicore__ inline void Run(
    const Tiling &tiling, GM_ADDR hidden, GM_ADDR gamma, GM_ADDR beta, GM_ADDR out,
    GM_ADDR inverse)
{
    TPipe pipe;
    AdalnNorm<T> kernel(pipe, tiling);
    kernel.Bind(hidden, gamma, beta, out, inverse);
    kernel.Process();
}

} // namespace
} // namespace adaln_norm
} // namespace loopmoe

extern "C" __global__ __aicore__ void loopmoe_adaln_norm(
    GM_ADDR hidden, GM_ADDR gamma, GM_ADDR beta, GM_ADDR out, GM_ADDR inverse, GM_ADDR workspace,
    GM_ADDR tiling)
{
    KERNEL_TASK_TYPE_DEFAULT(KERNEL_TYPE_AIV_ONLY);
    REGISTER_TILING_DEFAULT(loopmoe::adaln_norm::Tiling);
    GET_TILING_DATA_WITH_STRUCT(loopmoe::adaln_norm::Tiling, plan, tiling);
    (void)workspace;
    if (plan.data_type == loopmoe::BFLOAT16) {
        loopmoe::adaln_norm::Run<bfloat16_t>(plan, hidden, gamma, beta, out, inverse);
    } else {
        loopmoe::adaln_norm::Run<float>(plan, hidden, gamma, beta, out, inverse);
    }
}
