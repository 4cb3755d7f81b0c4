// What the instructions of the twin compute: one entry per group, compared with torch.
#include "kernel_operator.h"

using namespace AscendC;

namespace {

constexpr int32_t N = 1024;
using Scratch = TBuf<TPosition::VECCALC>;

struct Plan {
    int32_t mode;
};

template <HardEvent EVENT> void Sync()
{
    SetFlag<EVENT>(EVENT_ID0);
    WaitFlag<EVENT>(EVENT_ID0);
}

template <typename T> GlobalTensor<T> Global(GM_ADDR address)
{
    GlobalTensor<T> tensor;
    tensor.SetGlobalBuffer(reinterpret_cast<__gm__ T *>(address), N);
    return tensor;
}

template <typename T> LocalTensor<T> Load(Scratch &buffer, GM_ADDR address)
{
    DataCopy(buffer.Get<T>(), Global<T>(address), N);
    Sync<HardEvent::MTE2_V>();
    return buffer.Get<T>();
}

template <typename T> void Store(GM_ADDR address, const LocalTensor<T> &tensor)
{
    Sync<HardEvent::V_MTE3>();
    DataCopy(Global<T>(address), tensor, N);
    Sync<HardEvent::MTE3_V>();
}

} // namespace

extern "C" __global__ __aicore__ void casts(
    GM_ADDR x, GM_ADDR as_bf16, GM_ADDR as_half, GM_ADDR as_int, GM_ADDR tiling)
{
    GET_TILING_DATA_WITH_STRUCT(Plan, plan, tiling);
    TPipe pipe;
    Scratch a, b;
    pipe.InitBuffer(a, N * sizeof(float));
    pipe.InitBuffer(b, N * sizeof(float));
    const auto mode = static_cast<RoundMode>(plan.mode);
    const LocalTensor<float> source = Load<float>(a, x);
    Cast(b.Get<bfloat16_t>(), source, mode, N);
    Store(as_bf16, b.Get<bfloat16_t>());
    Cast(b.Get<half>(), source, mode, N);
    Store(as_half, b.Get<half>());
    Cast(b.Get<int32_t>(), source, mode, N);
    Store(as_int, b.Get<int32_t>());
}

extern "C" __global__ __aicore__ void widened(
    GM_ADDR from_bf16, GM_ADDR from_half, GM_ADDR out_bf16, GM_ADDR out_half, GM_ADDR tiling)
{
    (void)tiling;
    TPipe pipe;
    Scratch a, b, c;
    pipe.InitBuffer(a, N * sizeof(half));
    pipe.InitBuffer(b, N * sizeof(float));
    pipe.InitBuffer(c, N * sizeof(half));
    Cast(b.Get<float>(), Load<bfloat16_t>(a, from_bf16), RoundMode::CAST_NONE, N);
    Store(out_bf16, b.Get<float>());
    Cast(b.Get<float>(), Load<half>(c, from_half), RoundMode::CAST_NONE, N);
    Store(out_half, b.Get<float>());
}

// The instruction that `mode` numbers, on floats.
extern "C" __global__ __aicore__ void floats(GM_ADDR x, GM_ADDR y, GM_ADDR out, GM_ADDR tiling)
{
    GET_TILING_DATA_WITH_STRUCT(Plan, plan, tiling);
    TPipe pipe;
    Scratch a, b, c;
    pipe.InitBuffer(a, N * sizeof(float));
    pipe.InitBuffer(b, N * sizeof(float));
    pipe.InitBuffer(c, N * sizeof(float));
    const LocalTensor<float> p = Load<float>(a, x);
    const LocalTensor<float> q = Load<float>(b, y);
    const LocalTensor<float> r = c.Get<float>();
    switch (plan.mode) {
    case 0: Add(r, p, q, N); break;
    case 1: Sub(r, p, q, N); break;
    case 2: Mul(r, p, q, N); break;
    case 3: Div(r, p, q, N); break;
    case 4: Max(r, p, q, N); break;
    case 5: Min(r, p, q, N); break;
    case 6: Adds(r, p, 1.5f, N); break;
    case 7: Muls(r, p, 1.5f, N); break;
    case 8: Maxs(r, p, 0.25f, N); break;
    case 9: Mins(r, p, 0.25f, N); break;
    case 10: Exp(r, p, N); break;
    case 11: Ln(r, q, N); break;
    case 12: Abs(r, p, N); break;
    case 13: Sqrt(r, q, N); break;
    case 14: Rsqrt(r, q, N); break;
    case 15: Reciprocal(r, q, N); break;
    case 16: Relu(r, p, N); break;
    case 17:
        DataCopy(r, q, static_cast<uint32_t>(N));
        PipeBarrier<PIPE_V>();
        Axpy(r, p, 1.5f, N);
        break;
    default: Duplicate(r, 2.5f, N); break;
    }
    Store(out, r);
}

// Sums of 1, 2, ... values, which end at every place of a repeat; and one sum per repeat.
extern "C" __global__ __aicore__ void sums(GM_ADDR x, GM_ADDR out, GM_ADDR whole, GM_ADDR tiling)
{
    (void)tiling;
    TPipe pipe;
    Scratch a, b, c, d;
    pipe.InitBuffer(a, N * sizeof(float));
    pipe.InitBuffer(b, N * sizeof(float));
    pipe.InitBuffer(c, 32);
    pipe.InitBuffer(d, 16 * sizeof(float));
    const LocalTensor<float> values = Load<float>(a, x);
    const LocalTensor<float> row = b.Get<float>();
    for (int32_t n = 1; n <= N; ++n) {
        ReduceSum(c.Get<float>(), values, d.Get<float>(), n);
        Sync<HardEvent::V_S>();
        const float sum = c.Get<float>().GetValue(0);
        Sync<HardEvent::S_V>();
        row.SetValue(static_cast<uint32_t>(n - 1), sum);
        PipeBarrier<PIPE_V>();
    }
    Sync<HardEvent::S_MTE3>();
    DataCopy(Global<float>(out), row, static_cast<uint32_t>(N));
    WholeReduceSum(d.Get<float>(), values, 64, 16, 1, 1, 8);
    Sync<HardEvent::V_MTE3>();
    DataCopyPad(Global<float>(whole), d.Get<float>(), {1, 64, 0, 0, 0});
}

// Rows of 5 floats out of rows of 8 and back, with gaps on both sides; whole blocks likewise.
extern "C" __global__ __aicore__ void strides(
    GM_ADDR x, GM_ADDR out, GM_ADDR blocks, GM_ADDR tiling)
{
    (void)tiling;
    TPipe pipe;
    Scratch a, b;
    pipe.InitBuffer(a, N * sizeof(float));
    pipe.InitBuffer(b, N * sizeof(float));
    DataCopyPad(a.Get<float>(), Global<float>(x), {16, 20, 12, 1, 0}, {true, 1, 2, -1.0f});
    Sync<HardEvent::MTE2_MTE3>();
    DataCopyPad(Global<float>(out), a.Get<float>(), {16, 32, 1, 0, 0});
    DataCopy(b.Get<float>(), Global<float>(x), DataCopyParams{8, 2, 1, 3});
    Sync<HardEvent::MTE2_MTE3>();
    DataCopy(Global<float>(blocks), b.Get<float>(), DataCopyParams{8, 2, 3, 0});
}
