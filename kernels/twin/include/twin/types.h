// The two 16-bit floating types: storage only, as on the vector unit of a 910B for bfloat16_t.
// Conversions round to nearest even unless told otherwise.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

namespace AscendC {
enum class RoundMode { CAST_NONE, CAST_RINT, CAST_FLOOR, CAST_CEIL, CAST_ROUND, CAST_TRUNC };
} // namespace AscendC

namespace twin {

inline uint32_t Bits(float value)
{
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    return bits;
}

inline float FromBits(uint32_t bits)
{
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}

// Cuts the low `drop` bits of a magnitude; says whether it goes up to the next one.
inline bool RoundsUp(uint64_t magnitude, int drop, bool negative, AscendC::RoundMode mode)
{
    using AscendC::RoundMode;
    const uint64_t half = uint64_t(1) << (drop - 1);
    const uint64_t rest = magnitude & ((half << 1) - 1);
    const bool odd = (magnitude >> drop) & 1;
    switch (mode) {
    case RoundMode::CAST_FLOOR: return negative && rest;
    case RoundMode::CAST_CEIL: return !negative && rest;
    case RoundMode::CAST_ROUND: return rest >= half; // ties away from zero
    case RoundMode::CAST_TRUNC: return false;
    default: return rest > half || (rest == half && odd);
    }
}

} // namespace twin

struct bfloat16_t {
    uint16_t bits;

    static bfloat16_t From(float value, AscendC::RoundMode mode = AscendC::RoundMode::CAST_RINT)
    {
        const uint32_t word = twin::Bits(value);
        if (std::isnan(value)) {
            return {static_cast<uint16_t>((word >> 16) | 0x40)};
        }
        if (std::isinf(value)) {
            return {static_cast<uint16_t>(word >> 16)};
        }
        const bool up = twin::RoundsUp(word & 0x7fffffffu, 16, word >> 31, mode);
        return {static_cast<uint16_t>((word >> 16) + up)};
    }

    float ToFloat() const { return twin::FromBits(static_cast<uint32_t>(bits) << 16); }
};

struct half {
    uint16_t bits;

    static half From(float value, AscendC::RoundMode mode = AscendC::RoundMode::CAST_RINT)
    {
        const uint32_t word = twin::Bits(value);
        const auto sign = static_cast<uint16_t>((word >> 16) & 0x8000);
        const uint32_t magnitude = word & 0x7fffffffu;
        if (magnitude >= 0x7f800000u) {
            return {static_cast<uint16_t>(sign | (magnitude > 0x7f800000u ? 0x7e00 : 0x7c00))};
        }
        const int exponent = static_cast<int>(magnitude >> 23) - 127;
        if (magnitude == 0 || exponent < -40) {
            return {static_cast<uint16_t>(sign + (magnitude && RoundsTiny(sign, mode)))};
        }
        // One subnormal step is 2^-24: below 2^-14 more bits of the mantissa are cut.
        const uint64_t mantissa = (magnitude & 0x7fffffu) | (exponent == -127 ? 0 : 0x800000u);
        const int drop = exponent >= -14 ? 13 : 13 + (-14 - exponent);
        const uint64_t kept = (mantissa >> drop) + twin::RoundsUp(mantissa, drop, sign, mode);
        const uint64_t biased = exponent >= -14 ? uint64_t(exponent + 14) << 10 : 0;
        const uint64_t rounded = biased + kept;
        return {static_cast<uint16_t>(sign | (rounded > 0x7c00 ? 0x7c00 : rounded))};
    }

    float ToFloat() const
    {
        const float sign = bits & 0x8000 ? -1.0f : 1.0f;
        const int exponent = (bits >> 10) & 31;
        const int mantissa = bits & 1023;
        if (exponent == 31) {
            return mantissa ? twin::FromBits(0x7fc00000u) : sign * HUGE_VALF;
        }
        return sign * (exponent ? std::ldexp(1024.0f + mantissa, exponent - 25)
                                : std::ldexp(static_cast<float>(mantissa), -24));
    }

private:
    static bool RoundsTiny(uint16_t sign, AscendC::RoundMode mode)
    {
        return (mode == AscendC::RoundMode::CAST_FLOOR && sign)
               || (mode == AscendC::RoundMode::CAST_CEIL && !sign);
    }
};

namespace twin {

// One way to a float and back, so that an operation is written once for every element type.
inline float Load(float value) { return value; }
inline float Load(half value) { return value.ToFloat(); }
inline float Load(bfloat16_t value) { return value.ToFloat(); }
inline int64_t Load(int16_t value) { return value; }
inline int64_t Load(int32_t value) { return value; }

template <typename T, typename V> T Store(V value)
{
    if constexpr (std::is_same_v<T, half> || std::is_same_v<T, bfloat16_t>) {
        return T::From(static_cast<float>(value));
    } else {
        return static_cast<T>(value);
    }
}

} // namespace twin
