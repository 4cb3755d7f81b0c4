// out[slots[t, k]] = x[t]: a row is read once and written up to K times.
//   x [T, H], slots [T, K] int32 (-1: dropped) -> out [R, H]; rows that no slot names stay as they
//   are. With K = 1 it is any re-ordering of rows, such as rank-major to expert-major.
#include "../../../ascendc/common/kernel.h"
#include "../op_host/permute_tiling.h"

namespace loopmoe {
namespace permute {
namespace {

class Permute {
public:
    __aicore__ inline Permute(TPipe &pipe, const Tiling &tiling) : t_(tiling)
    {
        pipe.InitBuffer(tiles_, BUFFERS,
                        TileOf<uint8_t>(tiling.tile_rows, tiling.tile_bytes).Elements());
    }

    __aicore__ inline void Bind(TPipe &pipe, GM_ADDR x, GM_ADDR slots, GM_ADDR out)
    {
        x_gm_.SetGlobalBuffer(x, t_.tokens * t_.row_bytes);
        out_gm_.SetGlobalBuffer(out, t_.rows * t_.row_bytes);
        slots_.Init(pipe, slots, t_.tokens * t_.top_k);
    }

    __aicore__ inline void Process()
    {
        const Rows mine = RowsOfBlock(t_.tokens);
        for (int64_t token = mine.first; token < mine.last; token += t_.tile_rows) {
            const int64_t rows
                = token + t_.tile_rows < mine.last ? t_.tile_rows : mine.last - token;
            for (int64_t byte = 0; byte < t_.row_bytes; byte += t_.tile_bytes) {
                const int64_t left = t_.row_bytes - byte;
                Step(token, byte,
                     TileOf<uint8_t>(rows, left < t_.tile_bytes ? left : t_.tile_bytes));
            }
        }
    }

private:
    __aicore__ inline void Step(int64_t token, int64_t byte, const Tile &tile)
    {
        LocalTensor<uint8_t> rows = tiles_.AllocTensor<uint8_t>();
        LoadTile(rows, x_gm_[token * t_.row_bytes + byte], tile, t_.row_bytes);
        tiles_.EnQue(rows);
        rows = tiles_.DeQue<uint8_t>();
        const Tile one{1, tile.columns, tile.padded};
        for (uint32_t r = 0; r < tile.rows; ++r) {
            for (int64_t k = 0; k < t_.top_k; ++k) {
                const int64_t slot = slots_.At((token + r) * t_.top_k + k);
                if (slot >= 0) {
                    StoreTile(out_gm_[slot * t_.row_bytes + byte], rows[r * tile.padded], one,
                              t_.row_bytes);
                }
            }
        }
        tiles_.FreeTensor(rows);
    }

    const Tiling t_;
    GlobalTensor<uint8_t> x_gm_, out_gm_;
    ScalarWindow<int32_t> slots_;
    // Copied in and out with no vector instruction between: one queue from MTE2 to MTE3.
    TQueBind<TPosition::VECIN, TPosition::VECOUT, 1> tiles_;
};

} // namespace
} // namespace permute
} // namespace loopmoe

extern "C" __global__ __aicore__ void loopmoe_permute(
    GM_ADDR x, GM_ADDR slots, GM_ADDR out, GM_ADDR workspace, GM_ADDR tiling)
{
    KERNEL_TASK_TYPE_DEFAULT(KERNEL_TYPE_AIV_ONLY);
    REGISTER_TILING_DEFAULT(loopmoe::permute::Tiling);
    GET_TILING_DATA_WITH_STRUCT(loopmoe::permute::Tiling, plan, tiling);
    (void)workspace;
    AscendC::TPipe pipe;
    loopmoe::permute::Permute kernel(pipe, plan);
    kernel.Bind(pipe, x, slots, out);
    kernel.Process();
}
