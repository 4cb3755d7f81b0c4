// Tiling of combine and its gradient. Without weights combine is the backward of permute.
#pragma once

#include "../../../ascendc/common/plan.h"

namespace loopmoe {
namespace combine {

struct Shape {
    int64_t tokens;
    int64_t hidden;
    int64_t top_k;
    int64_t rows; // of y
    int64_t data_type;
    int64_t weighted;
    int64_t backward;
};

struct Tiling {
    int64_t tokens;
    int64_t hidden;
    int64_t rows;
    int32_t top_k;
    int32_t data_type;
    int32_t weighted;
    int32_t tile_columns;
    int32_t tile_tokens; // backward: tokens whose dot products leave together
    int32_t unused;
};

#ifdef LOOPMOE_PLANS
// Number of blocks, -1 where nothing fits.
inline int64_t Plan(const Shape &shape, const Machine &machine, Tiling &tiling)
{
    const int64_t kept_pairs = Min(256, machine.ub_bytes / 1024);
    const int64_t size = BytesOf(shape.data_type);
    const int64_t moved = 2 * size * (shape.backward ? 3 : 2); // tensors in and out, two buffers
    const int64_t scratch = 4 * 2;
    const int64_t blocks = BlocksFor(shape.tokens, machine.cores);
    const int64_t top_k = Max(shape.top_k, 1);
    const int64_t kept = Max(1, Min(CeilDiv(shape.tokens, blocks), kept_pairs / top_k));
    // Windows of slots and weights; backward: sums, packed sums, one row's part.
    const int64_t sums = (kept * top_k + 1) * BLOCK_BYTES + PackedBytes(kept * top_k);
    const int64_t dots = shape.backward ? sums : 0;
    const TileSize tile = FitTile(1, shape.hidden, shape.data_type, moved + scratch, 0,
                                  2 * 4 * WINDOW + dots, machine.ub_bytes);
    tiling = {shape.tokens,
              shape.hidden,
              shape.rows,
              static_cast<int32_t>(shape.top_k),
              static_cast<int32_t>(shape.data_type),
              static_cast<int32_t>(shape.weighted),
              static_cast<int32_t>(tile.columns),
              static_cast<int32_t>(kept),
              0};
    return tile.columns > 0 && kept * top_k <= 4095 ? blocks : -1;
}
#endif

} // namespace combine
} // namespace loopmoe
