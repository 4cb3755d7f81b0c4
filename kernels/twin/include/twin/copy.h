// DMA between GM and UB: DataCopy (whole 32-byte blocks) and DataCopyPad (any length, by bytes).
#pragma once

#include "tensor.h"

namespace AscendC {

struct DataCopyParams { // lengths and gaps in blocks of 32 bytes
    uint16_t blockCount = 1;
    uint16_t blockLen = 0;
    uint16_t srcStride = 0;
    uint16_t dstStride = 0;
};

struct DataCopyExtParams { // length and the gap in GM in bytes, the gap in UB in blocks of 32 bytes
    uint16_t blockCount = 1;
    uint32_t blockLen = 0;
    uint32_t srcStride = 0;
    uint32_t dstStride = 0;
    uint32_t rsv = 0;
};

template <typename T> struct DataCopyPadExtParams {
    bool isPad = false;
    uint8_t leftPadding = 0; // elements
    uint8_t rightPadding = 0;
    T paddingValue{};
};

} // namespace AscendC

namespace twin {

inline void CountBurst(uint64_t bytes, bool in)
{
    ++machine.counts.bursts;
    machine.counts.short_bursts += bytes < SHORT_BURST;
    (in ? machine.counts.bytes_in : machine.counts.bytes_out) += bytes;
}

inline void BeginDma(Pipe pipe, const char *call, At at)
{
    machine.Issue(pipe, call, at);
    ++machine.counts.dma;
}

template <typename T> void CheckBlocks(uint64_t bytes, const AscendC::GlobalTensor<T> &global)
{
    if (bytes == 0 || bytes % BLOCK_BYTES) {
        Fail("a length of %llu bytes is not a positive multiple of %u (use DataCopyPad)",
             static_cast<unsigned long long>(bytes), BLOCK_BYTES);
    }
    if (global.Begin() % BLOCK_BYTES) {
        Fail("GM %s + %lld is not aligned to %u bytes (use DataCopyPad)", global.Name(),
             static_cast<long long>(global.Begin()), BLOCK_BYTES);
    }
}

inline void CheckExtent(const AscendC::DataCopyExtParams &shape)
{
    if (shape.blockCount < 1 || shape.blockCount > 4095) {
        Fail("blockCount %u is outside 1..4095", shape.blockCount);
    }
    if (shape.blockLen < 1 || shape.blockLen > 2097151) {
        Fail("blockLen %u is outside 1..2097151 bytes", shape.blockLen);
    }
}

} // namespace twin

namespace AscendC {

template <typename T>
void DataCopy(const LocalTensor<T> &dst, const GlobalTensor<T> &src, const DataCopyParams &shape,
              twin::At at = twin::At::Here())
{
    twin::BeginDma(twin::MTE2, "DataCopy", at);
    const uint32_t bytes = shape.blockLen * twin::BLOCK_BYTES;
    twin::CheckBlocks(bytes, src);
    for (uint32_t i = 0; i < shape.blockCount; ++i) {
        const uint8_t *from = src.AtByte(int64_t(i) * (shape.blockLen + shape.srcStride) * 32)
                                  .Read(twin::MTE2, bytes);
        const uint32_t skip = i * (shape.blockLen + shape.dstStride) * 32 / uint32_t(sizeof(T));
        T *to = dst[skip].template Access<true>(twin::MTE2, bytes / uint32_t(sizeof(T)), 32);
        std::memcpy(static_cast<void *>(to), from, bytes);
        twin::CountBurst(bytes, true);
    }
}

template <typename T>
void DataCopy(const GlobalTensor<T> &dst, const LocalTensor<T> &src, const DataCopyParams &shape,
              twin::At at = twin::At::Here())
{
    twin::BeginDma(twin::MTE3, "DataCopy", at);
    const uint32_t bytes = shape.blockLen * twin::BLOCK_BYTES;
    twin::CheckBlocks(bytes, dst);
    for (uint32_t i = 0; i < shape.blockCount; ++i) {
        const uint32_t skip = i * (shape.blockLen + shape.srcStride) * 32 / uint32_t(sizeof(T));
        const T *from
            = src[skip].template Access<false>(twin::MTE3, bytes / uint32_t(sizeof(T)), 32);
        uint8_t *to = dst.AtByte(int64_t(i) * (shape.blockLen + shape.dstStride) * 32)
                          .Write(twin::MTE3, bytes);
        std::memcpy(to, from, bytes);
        twin::CountBurst(bytes, false);
    }
}

template <typename T>
void DataCopy(const LocalTensor<T> &dst, const GlobalTensor<T> &src, uint32_t count,
              twin::At at = twin::At::Here())
{
    twin::machine.Enter("DataCopy", at);
    twin::CheckBlocks(uint64_t(count) * sizeof(T), src);
    DataCopy(dst, src, {1, static_cast<uint16_t>(count * sizeof(T) / 32), 0, 0}, at);
}

template <typename T>
void DataCopy(const GlobalTensor<T> &dst, const LocalTensor<T> &src, uint32_t count,
              twin::At at = twin::At::Here())
{
    twin::machine.Enter("DataCopy", at);
    twin::CheckBlocks(uint64_t(count) * sizeof(T), dst);
    DataCopy(dst, src, {1, static_cast<uint16_t>(count * sizeof(T) / 32), 0, 0}, at);
}

template <typename T>
void DataCopyPad(const LocalTensor<T> &dst, const GlobalTensor<T> &src,
                 const DataCopyExtParams &shape, const DataCopyPadExtParams<T> &pad,
                 twin::At at = twin::At::Here())
{
    twin::BeginDma(twin::MTE2, "DataCopyPad", at);
    twin::CheckExtent(shape);
    const uint32_t size = sizeof(T);
    const uint32_t left = pad.isPad ? pad.leftPadding * size : 0;
    const uint32_t right = pad.isPad ? pad.rightPadding * size : 0;
    if (left > 32 || right > 32) {
        twin::Fail("padding of %u and %u bytes: each side takes 32 at most", left, right);
    }
    const uint32_t defined = left + shape.blockLen + right;
    const uint32_t padded = (defined + 31) / 32 * 32;
    for (uint32_t i = 0; i < shape.blockCount; ++i) {
        const int64_t skip = int64_t(i) * (int64_t(shape.blockLen) + shape.srcStride);
        const uint8_t *from = src.AtByte(skip).Read(twin::MTE2, shape.blockLen);
        const uint32_t begin = i * (padded + shape.dstStride * 32) / size;
        // Without isPad the bytes up to the next block are left unknown: reading them is a fault.
        T *to = dst[begin].template Access<true>(twin::MTE2, padded / size, 32, defined);
        std::fill(to, to + left / size, pad.paddingValue);
        std::memcpy(static_cast<void *>(to + left / size), from, shape.blockLen);
        T *end = to + (left + shape.blockLen) / size;
        std::fill(end, end + right / size, pad.paddingValue);
        twin::CountBurst(shape.blockLen, true);
    }
}

template <typename T>
void DataCopyPad(const GlobalTensor<T> &dst, const LocalTensor<T> &src,
                 const DataCopyExtParams &shape, twin::At at = twin::At::Here())
{
    twin::BeginDma(twin::MTE3, "DataCopyPad", at);
    twin::CheckExtent(shape);
    const uint32_t padded = (shape.blockLen + 31) / 32 * 32;
    for (uint32_t i = 0; i < shape.blockCount; ++i) {
        const uint32_t begin = i * (padded + shape.srcStride * 32) / uint32_t(sizeof(T));
        const T *from = src[begin].template Access<false>(
            twin::MTE3, shape.blockLen / uint32_t(sizeof(T)), 32);
        const int64_t skip = int64_t(i) * (int64_t(shape.blockLen) + shape.dstStride);
        std::memcpy(dst.AtByte(skip).Write(twin::MTE3, shape.blockLen), from, shape.blockLen);
        twin::CountBurst(shape.blockLen, false);
    }
}

} // namespace AscendC
