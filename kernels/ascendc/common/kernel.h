// What the kernels share on the device: a block's rows, tiles in and out, scalars read from GM.
#pragma once

#include "kernel_operator.h"

#include "plan.h"

// A build without the operator framework (kernel launch) has no tiling macros: read it by words.
#ifndef REGISTER_TILING_DEFAULT
#define REGISTER_TILING_DEFAULT(STRUCT)
#endif
#ifndef GET_TILING_DATA_WITH_STRUCT
#define GET_TILING_DATA_WITH_STRUCT(STRUCT, name, address)                      \
    STRUCT name;                                                                \
    for (uint32_t word = 0; word < sizeof(STRUCT) / sizeof(int32_t); ++word) {  \
        reinterpret_cast<int32_t *>(&name)[word]                                \
            = reinterpret_cast<__gm__ int32_t *>(address)[word];                \
    }
#endif
#ifndef KERNEL_TASK_TYPE_DEFAULT
#define KERNEL_TASK_TYPE_DEFAULT(KIND)
#endif

namespace loopmoe {

using namespace AscendC;

constexpr int32_t BUFFERS = 2; // every queue: one tensor moves while the other is worked on
constexpr uint32_t LANES = 8;  // floats in a block of UB: a row's sum sits alone in one

using QueueIn = TQue<TPosition::VECIN, 1>;
using QueueOut = TQue<TPosition::VECOUT, 1>;

// Rows [first, last) of this block: contiguous, sizes differ by one at most.
struct Rows {
    int64_t first, last;
};

__aicore__ inline Rows RowsOfBlock(int64_t rows)
{
    const int64_t block = GetBlockIdx();
    const int64_t each = rows / GetBlockNum();
    const int64_t more = rows % GetBlockNum();
    const int64_t first = block * each + (block < more ? block : more);
    return {first, first + each + (block < more ? 1 : 0)};
}

struct Tile {
    uint32_t rows, columns;
    uint32_t padded; // columns up to a whole block of 32 bytes: the distance of rows in UB

    __aicore__ inline uint32_t Elements() const { return rows * padded; }
};

template <typename T> __aicore__ inline Tile TileOf(int64_t rows, int64_t columns)
{
    constexpr int64_t unit = BLOCK_BYTES / static_cast<int64_t>(sizeof(T));
    return {static_cast<uint32_t>(rows), static_cast<uint32_t>(columns),
            static_cast<uint32_t>((columns + unit - 1) / unit * unit)};
}

// One pipe waits for all that the other was given so far.
template <HardEvent EVENT> __aicore__ inline void Sync()
{
    const event_t id = static_cast<event_t>(GetTPipePtr()->FetchEventID(EVENT));
    SetFlag<EVENT>(id);
    WaitFlag<EVENT>(id);
}

// The next vector instruction may read what the ones before wrote.
__aicore__ inline void Settle() { PipeBarrier<PIPE_V>(); }

// Rows of `source`, `stride` elements apart, into UB; the padding becomes zeros, so that whole
// tiles can be worked on as one vector.
template <typename T>
__aicore__ inline void LoadTile(
    const LocalTensor<T> &target, const GlobalTensor<T> &source, const Tile &tile, int64_t stride)
{
    DataCopyExtParams shape;
    shape.blockCount = static_cast<uint16_t>(tile.rows);
    shape.blockLen = tile.columns * static_cast<uint32_t>(sizeof(T));
    shape.srcStride = static_cast<uint32_t>((stride - tile.columns) * sizeof(T));
    shape.dstStride = 0;
    shape.rsv = 0;
    DataCopyPadExtParams<T> pad;
    pad.isPad = true;
    pad.leftPadding = 0;
    pad.rightPadding = static_cast<uint8_t>(tile.padded - tile.columns);
    pad.paddingValue = T{};
    DataCopyPad(target, source, shape, pad);
}

template <typename T>
__aicore__ inline void StoreTile(
    const GlobalTensor<T> &target, const LocalTensor<T> &source, const Tile &tile, int64_t stride)
{
    DataCopyExtParams shape;
    shape.blockCount = static_cast<uint16_t>(tile.rows);
    shape.blockLen = tile.columns * static_cast<uint32_t>(sizeof(T));
    shape.srcStride = 0;
    shape.dstStride = static_cast<uint32_t>((stride - tile.columns) * sizeof(T));
    shape.rsv = 0;
    DataCopyPad(target, source, shape);
}

template <typename T>
__aicore__ inline LocalTensor<T> FetchTile(
    QueueIn &queue, const GlobalTensor<T> &source, const Tile &tile, int64_t stride)
{
    LocalTensor<T> tensor = queue.AllocTensor<T>();
    LoadTile(tensor, source, tile, stride);
    queue.EnQue(tensor);
    return queue.DeQue<T>();
}

template <typename T>
__aicore__ inline void SendTile(
    QueueOut &queue, LocalTensor<T> &tensor, const GlobalTensor<T> &target, const Tile &tile,
    int64_t stride)
{
    queue.EnQue(tensor);
    tensor = queue.DeQue<T>();
    StoreTile(target, tensor, tile, stride);
    queue.FreeTensor(tensor);
}

// The tensor as floats: itself, or widened into `scratch` (Settle before reading it).
template <typename T>
__aicore__ inline LocalTensor<float> Widen(
    const LocalTensor<T> &tensor, const LocalTensor<float> &scratch, uint32_t count)
{
    if constexpr (sizeof(T) == sizeof(float)) {
        return tensor;
    } else {
        Cast(scratch, tensor, RoundMode::CAST_NONE, count);
        return scratch;
    }
}

// Where floats are computed that Narrow then makes the result: the result itself where it is fp32.
template <typename T>
__aicore__ inline LocalTensor<float> Wide(
    const LocalTensor<T> &result, const LocalTensor<float> &scratch)
{
    if constexpr (sizeof(T) == sizeof(float)) {
        return result;
    } else {
        return scratch;
    }
}

template <typename T>
__aicore__ inline void Narrow(
    const LocalTensor<T> &result, const LocalTensor<float> &wide, uint32_t count)
{
    if constexpr (sizeof(T) != sizeof(float)) {
        Settle();
        Cast(result, wide, RoundMode::CAST_RINT, count);
    }
}

// sums[row * LANES] += the sum of each row. `parts` [rows * LANES] and `work` are scratch.
// Settles before it reads and after it wrote.
__aicore__ inline void AddRowSums(
    const LocalTensor<float> &sums, const LocalTensor<float> &values,
    const LocalTensor<float> &parts, const LocalTensor<float> &work, const Tile &tile)
{
    Duplicate(parts, 0.0f, tile.rows * LANES); // ReduceSum writes the first lane only
    Settle();
    for (uint32_t row = 0; row < tile.rows; ++row) {
        ReduceSum(parts[row * LANES], values[row * tile.padded], work,
                  static_cast<int32_t>(tile.columns));
        Settle();
    }
    Add(sums, sums, parts, tile.rows * LANES);
    Settle();
}

// The first lane of each row's sum, packed, as one stretch of GM: rows one by one would be bursts
// of 4 bytes. The sums are settled, as AddRowSums leaves them.
__aicore__ inline void SendSums(
    QueueOut &queue, const LocalTensor<float> &sums, const GlobalTensor<float> &target,
    int64_t rows)
{
    constexpr int64_t most = 248; // repeats of one instruction, in whole blocks of the result
    LocalTensor<float> packed = queue.AllocTensor<float>();
    for (int64_t first = 0; first < rows; first += most) {
        const int64_t repeats = rows - first < most ? rows - first : most;
        WholeReduceSum(packed[static_cast<uint32_t>(first)],
                       sums[static_cast<uint32_t>(first) * LANES], 1,
                       static_cast<int32_t>(repeats), 1, 1, 1);
    }
    SendTile(queue, packed, target, TileOf<float>(1, rows), rows);
}

// Scalars of a long GM array, read by the scalar unit in order: a window of it lies in UB.
template <typename T> class ScalarWindow {
public:
    __aicore__ inline void Init(TPipe &pipe, GM_ADDR address, int64_t total)
    {
        source_.SetGlobalBuffer(reinterpret_cast<__gm__ T *>(address), total);
        pipe.InitBuffer(buffer_, WINDOW * sizeof(T));
        total_ = total;
    }

    __aicore__ inline T At(int64_t index)
    {
        if (index < first_ || index >= last_) {
            Move(index);
        }
        return buffer_.template Get<T>().GetValue(static_cast<uint32_t>(index - first_));
    }

private:
    __aicore__ inline void Move(int64_t index)
    {
        first_ = index;
        last_ = index + WINDOW < total_ ? index + WINDOW : total_;
        Sync<HardEvent::S_MTE2>(); // the old window has been read
        LoadTile(buffer_.template Get<T>(), source_[first_], TileOf<T>(1, last_ - first_),
                 last_ - first_);
        Sync<HardEvent::MTE2_S>();
    }

    GlobalTensor<T> source_;
    TBuf<TPosition::VECCALC> buffer_;
    int64_t total_ = 0;
    int64_t first_ = 0, last_ = 0;
};

} // namespace loopmoe
