// Tiling of permute: rows are moved as bytes, whatever their type.
#pragma once

#include "../../../ascendc/common/plan.h"

namespace loopmoe {
namespace permute {

struct Shape {
    int64_t tokens;
    int64_t row_bytes;
    int64_t top_k;
    int64_t rows; // of the output
};

struct Tiling {
    int64_t tokens;
    int64_t row_bytes;
    int64_t rows;
    int32_t top_k;
    int32_t tile_rows;
    int32_t tile_bytes; // of a row
    int32_t unused;
};

#ifdef LOOPMOE_PLANS
// Number of blocks, -1 where nothing fits.
inline int64_t Plan(const Shape &shape, const Machine &machine, Tiling &tiling)
{
    constexpr int64_t wanted = 32768; // a larger tile only delays the first copy out
    const int64_t room = (machine.ub_bytes - UB_RESERVE - 4 * WINDOW) / 2;
    const int64_t most = Min(room, wanted) / BLOCK_BYTES * BLOCK_BYTES;
    const int64_t padded = AlignUp(Max(shape.row_bytes, 1), BLOCK_BYTES);
    const int64_t blocks = BlocksFor(shape.tokens, machine.cores);
    const bool whole = padded <= most;
    const int64_t fit = whole ? most / padded : 1;
    const int64_t share = CeilDiv(shape.tokens, blocks);
    tiling = {shape.tokens,
              shape.row_bytes,
              shape.rows,
              static_cast<int32_t>(shape.top_k),
              static_cast<int32_t>(Max(1, Min(Min(fit, share), MAX_TILE_ROWS))),
              static_cast<int32_t>(whole ? shape.row_bytes : Max(most, 0)),
              0};
    return most > 0 ? blocks : -1;
}
#endif

} // namespace permute
} // namespace loopmoe
