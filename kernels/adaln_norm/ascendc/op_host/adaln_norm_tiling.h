// Tiling of adaln_norm and its gradient.
#pragma once

#include "../../../ascendc/common/plan.h"

namespace loopmoe {
namespace adaln_norm {

struct Shape {
    int64_t rows;
    int64_t width;
    int64_t data_type;
    int64_t backward;
    double eps; // not read by the gradient
};

struct Tiling {
    int64_t rows;
    int64_t width;
    int32_t data_type;
    int32_t tile_rows;
    int32_t tile_columns;
    float eps;
    float inverse_width;
    int32_t unused;
};

#ifdef LOOPMOE_PLANS
// Number of blocks, -1 where nothing fits.
inline int64_t Plan(const Shape &shape, const Machine &machine, Tiling &tiling)
{
    const int64_t size = BytesOf(shape.data_type);
    const int64_t moved = 2 * size * (shape.backward ? 5 : 4); // tensors in and out, two buffers
    const int64_t scratch = 4 * 4;
    // Sums and parts; forward: ones, packed sums.
    const int64_t per_row = 2 * BLOCK_BYTES + (shape.backward ? 0 : BLOCK_BYTES + 8);
    const int64_t fixed = shape.backward ? 4 * WINDOW : 64;
    const int64_t blocks = BlocksFor(shape.rows, machine.cores);
    const TileSize tile = FitTile(CeilDiv(shape.rows, blocks), shape.width, shape.data_type,
                                  moved + scratch, per_row, fixed, machine.ub_bytes);
    tiling = {shape.rows,
              shape.width,
              static_cast<int32_t>(shape.data_type),
              static_cast<int32_t>(tile.rows),
              static_cast<int32_t>(tile.columns),
              static_cast<float>(shape.eps),
              1.0f / static_cast<float>(Max(shape.width, 1)),
              0};
    return tile.columns > 0 ? blocks : -1;
}
#endif

} // namespace adaln_norm
} // namespace loopmoe
