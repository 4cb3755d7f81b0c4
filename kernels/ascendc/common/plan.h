// Arithmetic of the tilings: plain C++, compiled by op_host with CANN, by the torch binding and by
// the host twin alike. What the twin runs is what the device is given.
#pragma once

#include <cstdint>

// Kernels include this too, after kernel_operator.h. Device code calls the constexpr functions and
// has no use for the plans; the twin needs both.
#ifdef __aicore__
#define LOOPMOE_CONSTEXPR __aicore__ inline constexpr
#else
#define LOOPMOE_CONSTEXPR constexpr
#endif
#if !defined(__aicore__) || defined(ASCENDC_HOST_TWIN)
#define LOOPMOE_PLANS
#endif

namespace loopmoe {

enum DataType : int32_t { FLOAT32 = 0, BFLOAT16 = 1 };

constexpr int64_t BLOCK_BYTES = 32;     // unit of UB: alignment of vectors and of DMA
constexpr int64_t REPEAT_FLOATS = 64;   // one repeat of the vector unit
constexpr int64_t UB_RESERVE = 8192;    // left to the compiler and the runtime
constexpr int64_t WINDOW = 512;         // scalars (indices, weights) fetched at a time
constexpr int64_t MAX_TILE_ROWS = 256;  // no more than a window, far below the 4095 of one DMA

struct Machine {
    int64_t cores;    // vector cores
    int64_t ub_bytes; // unified buffer of each
};

LOOPMOE_CONSTEXPR int64_t CeilDiv(int64_t a, int64_t b) { return (a + b - 1) / b; }
LOOPMOE_CONSTEXPR int64_t AlignUp(int64_t a, int64_t b) { return CeilDiv(a, b) * b; }
LOOPMOE_CONSTEXPR int64_t Min(int64_t a, int64_t b) { return a < b ? a : b; }
LOOPMOE_CONSTEXPR int64_t Max(int64_t a, int64_t b) { return a > b ? a : b; }
LOOPMOE_CONSTEXPR int64_t BytesOf(int64_t data_type) { return data_type == BFLOAT16 ? 2 : 4; }

// Floats that ReduceSum needs beside its operand.
LOOPMOE_CONSTEXPR int64_t ReduceWork(int64_t count)
{
    return AlignUp(CeilDiv(count, REPEAT_FLOATS), 8);
}

// Bytes of the queue of two buffers that sends `count` packed floats: 8 each, at most 64 more.
LOOPMOE_CONSTEXPR int64_t PackedBytes(int64_t count)
{
    return 2 * AlignUp(4 * count, BLOCK_BYTES);
}

// At least one block, never more blocks than rows.
LOOPMOE_CONSTEXPR int64_t BlocksFor(int64_t rows, int64_t cores)
{
    return Max(1, Min(rows, cores));
}

#ifdef LOOPMOE_PLANS
struct TileSize {
    int64_t rows;
    int64_t columns;
};

// Several whole rows where they fit, else pieces of one row.
//   element_bytes: UB bytes per element of a tile, row_bytes: per row, fixed_bytes: once.
// Columns are 0 when not even one repeat fits.
inline TileSize FitTile(
    int64_t rows, int64_t width, int64_t data_type, int64_t element_bytes, int64_t row_bytes,
    int64_t fixed_bytes, int64_t ub_bytes)
{
    const int64_t budget = ub_bytes - UB_RESERVE - fixed_bytes;
    const int64_t padded = AlignUp(Max(width, 1), BLOCK_BYTES / BytesOf(data_type));
    // ReduceSum's work: at most 4 bytes in 64 elements, and 32 bytes of rounding.
    const int64_t whole = padded * element_bytes + 4 * ReduceWork(padded) + row_bytes;
    if (whole <= budget) {
        const int64_t more = (budget - whole) / (padded * element_bytes + row_bytes);
        return {Max(1, Min(Min(rows, MAX_TILE_ROWS), 1 + more)), Max(width, 1)};
    }
    const int64_t repeats
        = (budget - row_bytes - BLOCK_BYTES) / (REPEAT_FLOATS * element_bytes + 4);
    return {1, Max(repeats, 0) * REPEAT_FLOATS};
}
#endif // LOOPMOE_PLANS

} // namespace loopmoe
