// Tiling of weighted_swiglu and its gradient.
#pragma once

#include "../../../ascendc/common/plan.h"

namespace loopmoe {
namespace weighted_swiglu {

struct Shape {
    int64_t rows;
    int64_t width; // of the output: gate_up is twice as wide
    int64_t data_type;
    int64_t backward;
};

struct Tiling {
    int64_t rows;
    int64_t width;
    int32_t data_type;
    int32_t tile_rows;
    int32_t tile_columns;
    int32_t unused;
};

#ifdef LOOPMOE_PLANS
// Number of blocks, -1 where nothing fits.
inline int64_t Plan(const Shape &shape, const Machine &machine, Tiling &tiling)
{
    const int64_t size = BytesOf(shape.data_type);
    const int64_t moved = 2 * size * (shape.backward ? 5 : 3); // tensors in and out, two buffers
    const int64_t scratch = 4 * (shape.backward ? 6 : 3);
    const int64_t per_row = shape.backward ? 2 * BLOCK_BYTES + 8 : 0; // sums, parts, packed
    const int64_t fixed = 4 * WINDOW + (shape.backward ? 64 : 0);
    const int64_t blocks = BlocksFor(shape.rows, machine.cores);
    const TileSize tile = FitTile(CeilDiv(shape.rows, blocks), shape.width, shape.data_type,
                                  moved + scratch, per_row, fixed, machine.ub_bytes);
    tiling = {shape.rows,
              shape.width,
              static_cast<int32_t>(shape.data_type),
              static_cast<int32_t>(tile.rows),
              static_cast<int32_t>(tile.columns),
              0};
    return tile.columns > 0 ? blocks : -1;
}
#endif

} // namespace weighted_swiglu
} // namespace loopmoe
