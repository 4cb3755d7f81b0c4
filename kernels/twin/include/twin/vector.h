// Element-wise instructions of the vector pipe, in their "first n elements" form. An element type
// that the vector unit of a 910B lacks is a compile error, as with CANN.
#pragma once

#include <limits>

#include "tensor.h"

namespace twin {

template <typename T, typename... ALLOWED>
constexpr bool OneOf = (std::is_same_v<T, ALLOWED> || ...);

template <typename T> constexpr bool Floating = OneOf<T, float, half>;
template <typename T> constexpr bool Arithmetic = OneOf<T, float, half, int16_t, int32_t>;

inline void BeginVector(const char *call, At at, uint64_t bytes)
{
    machine.Issue(V, call, at);
    machine.counts.vector_repeats += (bytes + 255) / 256;
}

// The unit works through its operands in order: a shifted overlap would feed on its own results.
template <typename T, typename U>
void CheckOverlap(const AscendC::LocalTensor<T> &dst, const AscendC::LocalTensor<U> &src,
                  uint32_t count)
{
    const uint32_t a = dst.Begin(), b = src.Begin();
    if (a != b && a < b + count * sizeof(U) && b < a + count * sizeof(T)) {
        Fail("the result UB %s overlaps the operand UB %s in part",
             UnifiedBuffer::Range(a, count * sizeof(T)).c_str(),
             UnifiedBuffer::Range(b, count * sizeof(U)).c_str());
    }
}

inline float Rounded(float value, AscendC::RoundMode mode)
{
    switch (mode) {
    case AscendC::RoundMode::CAST_FLOOR: return std::floor(value);
    case AscendC::RoundMode::CAST_CEIL: return std::ceil(value);
    case AscendC::RoundMode::CAST_ROUND: return std::round(value);
    case AscendC::RoundMode::CAST_TRUNC: return std::trunc(value);
    default: return std::nearbyint(value);
    }
}

template <typename T> T Clamp(float value)
{
    const auto low = static_cast<double>(std::numeric_limits<T>::lowest());
    const auto high = static_cast<double>(std::numeric_limits<T>::max());
    return std::isnan(value) ? T(0)
                             : static_cast<T>(std::min(std::max<double>(value, low), high));
}

inline uint32_t Positive(int32_t count)
{
    if (count <= 0) {
        Fail("count is %d", count);
    }
    return static_cast<uint32_t>(count);
}

template <typename T, typename F>
void Unary(const char *call, At at, const AscendC::LocalTensor<T> &dst,
           const AscendC::LocalTensor<T> &src, int32_t count, F f)
{
    BeginVector(call, at, uint64_t(count) * sizeof(T));
    const uint32_t n = Positive(count);
    CheckOverlap(dst, src, n);
    const T *from = src.template Access<false>(V, n, BLOCK_BYTES);
    T *to = dst.template Access<true>(V, n, BLOCK_BYTES);
    for (uint32_t i = 0; i < n; ++i) {
        to[i] = Store<T>(f(Load(from[i])));
    }
}

template <typename T, typename F>
void Binary(const char *call, At at, const AscendC::LocalTensor<T> &dst,
            const AscendC::LocalTensor<T> &a, const AscendC::LocalTensor<T> &b, int32_t count, F f)
{
    BeginVector(call, at, uint64_t(count) * sizeof(T));
    const uint32_t n = Positive(count);
    CheckOverlap(dst, a, n);
    CheckOverlap(dst, b, n);
    const T *left = a.template Access<false>(V, n, BLOCK_BYTES);
    const T *right = b.template Access<false>(V, n, BLOCK_BYTES);
    T *to = dst.template Access<true>(V, n, BLOCK_BYTES);
    for (uint32_t i = 0; i < n; ++i) {
        to[i] = Store<T>(f(Load(left[i]), Load(right[i])));
    }
}

} // namespace twin

namespace AscendC {

#define TWIN_BINARY(NAME, TYPES, EXPRESSION)                                                      \
    template <typename T>                                                                         \
    void NAME(const LocalTensor<T> &dst, const LocalTensor<T> &a, const LocalTensor<T> &b,        \
              const int32_t &count, twin::At at = twin::At::Here())                               \
    {                                                                                             \
        static_assert(twin::TYPES<T>, #NAME ": the vector unit has no such type; Cast first");    \
        twin::Binary(#NAME, at, dst, a, b, count, [](auto x, auto y) { return EXPRESSION; });     \
    }

TWIN_BINARY(Add, Arithmetic, x + y)
TWIN_BINARY(Sub, Arithmetic, x - y)
TWIN_BINARY(Mul, Arithmetic, x * y)
TWIN_BINARY(Div, Floating, x / y)
TWIN_BINARY(Max, Arithmetic, x > y ? x : y)
TWIN_BINARY(Min, Arithmetic, x < y ? x : y)
#undef TWIN_BINARY

#define TWIN_UNARY(NAME, EXPRESSION)                                                              \
    template <typename T>                                                                         \
    void NAME(const LocalTensor<T> &dst, const LocalTensor<T> &src, const int32_t &count,         \
              twin::At at = twin::At::Here())                                                     \
    {                                                                                             \
        static_assert(twin::Floating<T>, #NAME ": the vector unit has no such type; Cast first"); \
        twin::Unary(#NAME, at, dst, src, count, [](float x) { return EXPRESSION; });              \
    }

TWIN_UNARY(Exp, std::exp(x))
TWIN_UNARY(Ln, std::log(x))
TWIN_UNARY(Abs, std::fabs(x))
TWIN_UNARY(Sqrt, std::sqrt(x))
TWIN_UNARY(Rsqrt, 1.0f / std::sqrt(x))
TWIN_UNARY(Reciprocal, 1.0f / x)
TWIN_UNARY(Relu, x > 0.0f ? x : 0.0f)
#undef TWIN_UNARY

#define TWIN_SCALAR(NAME, EXPRESSION)                                                             \
    template <typename T>                                                                         \
    void NAME(const LocalTensor<T> &dst, const LocalTensor<T> &src, const T &scalar,              \
              const int32_t &count, twin::At at = twin::At::Here())                               \
    {                                                                                             \
        static_assert(twin::Arithmetic<T>,                                                        \
                      #NAME ": the vector unit has no such type; Cast first");                    \
        const auto y = twin::Load(scalar);                                                        \
        twin::Unary(#NAME, at, dst, src, count, [y](auto x) { return EXPRESSION; });              \
    }

TWIN_SCALAR(Adds, x + y)
TWIN_SCALAR(Muls, x * y)
TWIN_SCALAR(Maxs, x > y ? x : y)
TWIN_SCALAR(Mins, x < y ? x : y)
#undef TWIN_SCALAR

// dst + src * scalar. The product is rounded here before the sum; whether a 910B rounds it is not
// documented, so no kernel of this project uses it where a bit-exact result is promised.
template <typename T>
void Axpy(const LocalTensor<T> &dst, const LocalTensor<T> &src, const T &scalar,
          const int32_t &count, twin::At at = twin::At::Here())
{
    static_assert(twin::Floating<T>, "Axpy: the vector unit has no such type; Cast first");
    const float factor = twin::Load(scalar);
    twin::Binary("Axpy", at, dst, dst, src, count, [factor](float x, float y) {
        volatile float product = y * factor;
        return x + product;
    });
}

template <typename T>
void Duplicate(const LocalTensor<T> &dst, const T &scalar, const int32_t &count,
               twin::At at = twin::At::Here())
{
    static_assert(twin::OneOf<T, half, bfloat16_t, float, int16_t, uint16_t, int32_t, uint32_t>,
                  "Duplicate: the vector unit has no such type");
    twin::BeginVector("Duplicate", at, uint64_t(count) * sizeof(T));
    const uint32_t n = twin::Positive(count);
    T *to = dst.template Access<true>(twin::V, n, twin::BLOCK_BYTES);
    std::fill(to, to + n, scalar);
}

template <typename T>
void DataCopy(const LocalTensor<T> &dst, const LocalTensor<T> &src, uint32_t count,
              twin::At at = twin::At::Here())
{
    twin::BeginVector("DataCopy", at, uint64_t(count) * sizeof(T));
    if (count * sizeof(T) % twin::BLOCK_BYTES) {
        twin::Fail("a length of %zu bytes is not a multiple of 32", count * sizeof(T));
    }
    twin::CheckOverlap(dst, src, count);
    const T *from = src.template Access<false>(twin::V, count, twin::BLOCK_BYTES);
    T *to = dst.template Access<true>(twin::V, count, twin::BLOCK_BYTES);
    std::copy(from, from + count, to);
}

template <typename T, typename U>
void Cast(const LocalTensor<T> &dst, const LocalTensor<U> &src, const RoundMode &mode,
          const int32_t &count, twin::At at = twin::At::Here())
{
    constexpr bool widens = std::is_same_v<T, float> && twin::OneOf<U, half, bfloat16_t, int16_t>;
    constexpr bool narrows = (std::is_same_v<U, float>
                              && twin::OneOf<T, half, bfloat16_t, int16_t, int32_t>)
                             || (std::is_same_v<U, int32_t> && std::is_same_v<T, float>);
    static_assert(widens || narrows, "Cast: the vector unit has no such pair of types");
    twin::BeginVector("Cast", at, uint64_t(count) * std::max(sizeof(T), sizeof(U)));
    const uint32_t n = twin::Positive(count);
    if (widens != (mode == RoundMode::CAST_NONE)) {
        twin::Fail("%s", widens ? "a widening Cast takes CAST_NONE"
                                : "a narrowing Cast needs a rounding");
    }
    twin::CheckOverlap(dst, src, n);
    if (dst.Begin() == src.Begin() && sizeof(T) > sizeof(U)) {
        twin::Fail("a widening Cast in place overwrites what it has not read");
    }
    const U *from = src.template Access<false>(twin::V, n, twin::BLOCK_BYTES);
    T *to = dst.template Access<true>(twin::V, n, twin::BLOCK_BYTES);
    for (uint32_t i = 0; i < n; ++i) {
        const auto value = twin::Load(from[i]);
        if constexpr (twin::OneOf<T, half, bfloat16_t>) {
            to[i] = T::From(value, mode);
        } else if constexpr (std::is_same_v<U, float>) {
            to[i] = twin::Clamp<T>(twin::Rounded(value, mode));
        } else {
            to[i] = static_cast<T>(value);
        }
    }
}

} // namespace AscendC
