// Sums over a vector. The order is a pairwise tree inside a repeat (64 floats) and then over the
// repeats' results in the same way: a 910B's exact tree is not documented, so a sum is compared
// within a tolerance, never bit for bit.
#pragma once

#include "vector.h"

namespace twin {

inline float TreeSum(const float *values, uint32_t count)
{
    float level[64];
    std::copy(values, values + count, level);
    for (; count > 1; count = (count + 1) / 2) {
        for (uint32_t i = 0; i < count / 2; ++i) {
            level[i] = level[2 * i] + level[2 * i + 1];
        }
        if (count % 2) {
            level[count / 2] = level[count - 1];
        }
    }
    return level[0];
}

constexpr uint32_t REPEAT_FLOATS = 64;

} // namespace twin

namespace AscendC {

// One sum per repeat of `mask` floats; repeat r starts srcRepStride blocks of 32 bytes further on
// and its sum goes to element r * dstRepStride.
template <typename T>
void WholeReduceSum(const LocalTensor<T> &dst, const LocalTensor<T> &src, int32_t mask,
                    int32_t repeatTimes, int32_t dstRepStride, int32_t srcBlkStride,
                    int32_t srcRepStride, twin::At at = twin::At::Here())
{
    static_assert(std::is_same_v<T, float>, "WholeReduceSum: the twin sums floats");
    twin::machine.Issue(twin::V, "WholeReduceSum", at);
    const uint32_t lanes = twin::Positive(mask);
    if (lanes > twin::REPEAT_FLOATS || repeatTimes < 1 || repeatTimes > 255) {
        twin::Fail("mask %u is outside 1..64 or repeatTimes %d outside 1..255", lanes, repeatTimes);
    }
    if (srcBlkStride != 1) {
        twin::Fail("the twin knows srcBlkStride 1, not %d", srcBlkStride);
    }
    twin::machine.counts.vector_repeats += repeatTimes;
    for (int32_t r = 0; r < repeatTimes; ++r) {
        const float *from = src[r * srcRepStride * 8].template Access<false>(twin::V, lanes, 32);
        *dst[r * dstRepStride].template Access<true>(twin::V, 1, sizeof(float))
            = twin::TreeSum(from, lanes);
    }
}

// The sum of `count` floats into dst[0]; `work` holds the sums of the repeats.
template <typename T>
void ReduceSum(const LocalTensor<T> &dst, const LocalTensor<T> &src, const LocalTensor<T> &work,
               const int32_t count, twin::At at = twin::At::Here())
{
    static_assert(std::is_same_v<T, float>, "ReduceSum: the twin sums floats");
    twin::BeginVector("ReduceSum", at, uint64_t(count) * sizeof(T));
    const uint32_t n = twin::Positive(count);
    const uint32_t repeats = (n + twin::REPEAT_FLOATS - 1) / twin::REPEAT_FLOATS;
    const uint32_t needed = (repeats + 7) / 8 * 8;
    const float *from = src.template Access<false>(twin::V, n, twin::BLOCK_BYTES);
    if (needed > work.GetSize()) {
        twin::Fail("the work tensor has %u floats, %u floats to sum need %u", work.GetSize(), n,
                   needed);
    }
    float *sums = work.template Access<true>(twin::V, needed, twin::BLOCK_BYTES);
    for (uint32_t r = 0; r < repeats; ++r) {
        sums[r] = twin::TreeSum(from + r * twin::REPEAT_FLOATS,
                                std::min(twin::REPEAT_FLOATS, n - r * twin::REPEAT_FLOATS));
    }
    uint32_t left = repeats;
    for (; left > 1; left = (left + twin::REPEAT_FLOATS - 1) / twin::REPEAT_FLOATS) {
        twin::machine.counts.vector_repeats += (left + twin::REPEAT_FLOATS - 1) / 64;
        for (uint32_t r = 0; r * twin::REPEAT_FLOATS < left; ++r) {
            sums[r] = twin::TreeSum(sums + r * twin::REPEAT_FLOATS,
                                    std::min(twin::REPEAT_FLOATS, left - r * 64));
        }
    }
    const float sum = sums[0];
    std::fill(sums, sums + needed, twin::FromBits(0xffffffffu)); // what it leaves is not promised
    *dst.template Access<true>(twin::V, 1, twin::BLOCK_BYTES) = sum;
}

} // namespace AscendC
