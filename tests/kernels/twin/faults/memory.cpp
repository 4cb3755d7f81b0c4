// Capacity, sizes, alignment, bounds, and values that nothing wrote.
#include "common.h"

extern "C" __global__ __aicore__ void ub_capacity(GM_ADDR in, GM_ADDR out, GM_ADDR tiling)
{
    (void)in, (void)out;
    TPipe pipe;
    In queue;
    Scratch rest;
    pipe.InitBuffer(queue, 2, 65536);
    pipe.InitBuffer(rest, Planted(tiling) ? 65536 + 128 : 65536);
}

extern "C" __global__ __aicore__ void buffer_size(GM_ADDR in, GM_ADDR out, GM_ADDR tiling)
{
    (void)in, (void)out;
    TPipe pipe;
    Scratch buffer;
    pipe.InitBuffer(buffer, Planted(tiling) ? 100 : 128);
}

extern "C" __global__ __aicore__ void copy_length(GM_ADDR in, GM_ADDR out, GM_ADDR tiling)
{
    (void)out;
    TPipe pipe;
    Scratch buffer;
    pipe.InitBuffer(buffer, BYTES);
    DataCopy(buffer.Get<float>(), Global(in), Planted(tiling) ? 9 : 16);
}

extern "C" __global__ __aicore__ void copy_alignment(GM_ADDR in, GM_ADDR out, GM_ADDR tiling)
{
    (void)out;
    TPipe pipe;
    Scratch buffer;
    pipe.InitBuffer(buffer, BYTES);
    DataCopy(buffer.Get<float>(), Global(in, Planted(tiling) ? 2 : 8), 16);
}

extern "C" __global__ __aicore__ void vector_alignment(GM_ADDR in, GM_ADDR out, GM_ADDR tiling)
{
    (void)in, (void)out;
    TPipe pipe;
    Scratch buffer;
    pipe.InitBuffer(buffer, BYTES);
    const LocalTensor<float> x = Filled(buffer, 1.0f);
    Adds(x[Planted(tiling) ? 4 : 8], x[Planted(tiling) ? 4 : 8], 1.0f, 8);
}

extern "C" __global__ __aicore__ void gm_read_bounds(GM_ADDR in, GM_ADDR out, GM_ADDR tiling)
{
    (void)out;
    TPipe pipe;
    Scratch buffer;
    pipe.InitBuffer(buffer, BYTES);
    DataCopy(buffer.Get<float>(), Global(in, Planted(tiling) ? 1024 - 32 : 1024 - N), N);
}

extern "C" __global__ __aicore__ void gm_write_bounds(GM_ADDR in, GM_ADDR out, GM_ADDR tiling)
{
    (void)in;
    TPipe pipe;
    Scratch buffer;
    pipe.InitBuffer(buffer, BYTES);
    const LocalTensor<float> x = Filled(buffer, 1.0f);
    Sync<HardEvent::V_MTE3>();
    DataCopyPad(Global(out, 1024 - 5), x, {1, Planted(tiling) ? 24u : 20u, 0, 0, 0});
}

extern "C" __global__ __aicore__ void local_bounds(GM_ADDR in, GM_ADDR out, GM_ADDR tiling)
{
    (void)in, (void)out;
    TPipe pipe;
    Scratch a, b;
    pipe.InitBuffer(a, BYTES);
    pipe.InitBuffer(b, BYTES);
    const LocalTensor<float> x = Filled(a, 1.0f);
    Adds(x, x, 1.0f, Planted(tiling) ? N + 8 : N);
}

extern "C" __global__ __aicore__ void dma_blocks(GM_ADDR in, GM_ADDR out, GM_ADDR tiling)
{
    (void)out;
    TPipe pipe;
    Scratch buffer;
    pipe.InitBuffer(buffer, 131072);
    const uint16_t blocks = Planted(tiling) ? 4096 : 256;
    DataCopyPad(buffer.Get<float>(), Global(in), {blocks, 4, 0, 0, 0}, {true, 0, 7, 0.0f});
}

extern "C" __global__ __aicore__ void padding_size(GM_ADDR in, GM_ADDR out, GM_ADDR tiling)
{
    (void)out;
    TPipe pipe;
    Scratch buffer;
    pipe.InitBuffer(buffer, BYTES);
    const uint8_t padding = Planted(tiling) ? 15 : 7;
    DataCopyPad(buffer.Get<float>(), Global(in), {1, 4, 0, 0, 0}, {true, 0, padding, 0.0f});
}

extern "C" __global__ __aicore__ void unwritten_ub(GM_ADDR in, GM_ADDR out, GM_ADDR tiling)
{
    (void)in, (void)out;
    TPipe pipe;
    Scratch buffer;
    pipe.InitBuffer(buffer, BYTES);
    const LocalTensor<float> x = buffer.Get<float>();
    Duplicate(x, 1.0f, Planted(tiling) ? N - 1 : N);
    PipeBarrier<PIPE_V>();
    Adds(x, x, 1.0f, N);
}

extern "C" __global__ __aicore__ void unknown_padding(GM_ADDR in, GM_ADDR out, GM_ADDR tiling)
{
    (void)out;
    TPipe pipe;
    Scratch buffer;
    pipe.InitBuffer(buffer, 32);
    const bool pads = !Planted(tiling);
    DataCopyPad(buffer.Get<float>(), Global(in), {1, 20, 0, 0, 0}, {pads, 0, 3, 0.0f});
    Sync<HardEvent::MTE2_V>();
    Adds(buffer.Get<float>(), buffer.Get<float>(), 1.0f, 8);
}

extern "C" __global__ __aicore__ void writes_input(GM_ADDR in, GM_ADDR out, GM_ADDR tiling)
{
    TPipe pipe;
    Scratch buffer;
    pipe.InitBuffer(buffer, BYTES);
    const LocalTensor<float> x = Filled(buffer, 1.0f);
    Sync<HardEvent::V_MTE3>();
    DataCopy(Global(Planted(tiling) ? in : out), x, N);
}

extern "C" __global__ __aicore__ void reads_output(GM_ADDR in, GM_ADDR out, GM_ADDR tiling)
{
    TPipe pipe;
    Scratch buffer;
    pipe.InitBuffer(buffer, BYTES);
    DataCopy(buffer.Get<float>(), Global(Planted(tiling) ? out : in), N);
}

extern "C" __global__ __aicore__ void cast_rounding(GM_ADDR in, GM_ADDR out, GM_ADDR tiling)
{
    (void)in, (void)out;
    TPipe pipe;
    Scratch a, b;
    pipe.InitBuffer(a, BYTES);
    pipe.InitBuffer(b, BYTES);
    const LocalTensor<float> x = Filled(a, 1.0f);
    Cast(b.Get<bfloat16_t>(), x, Planted(tiling) ? RoundMode::CAST_NONE : RoundMode::CAST_RINT, N);
}

extern "C" __global__ __aicore__ void shifted_overlap(GM_ADDR in, GM_ADDR out, GM_ADDR tiling)
{
    (void)in, (void)out;
    TPipe pipe;
    Scratch buffer;
    pipe.InitBuffer(buffer, BYTES);
    const LocalTensor<float> x = Filled(buffer, 1.0f);
    Adds(x[Planted(tiling) ? 8 : 32], x, 1.0f, 32);
}

extern "C" __global__ __aicore__ void reduce_work(GM_ADDR in, GM_ADDR out, GM_ADDR tiling)
{
    (void)in, (void)out;
    TPipe pipe;
    Scratch values, sum, work;
    pipe.InitBuffer(values, 16 * BYTES);
    pipe.InitBuffer(sum, 32);
    pipe.InitBuffer(work, Planted(tiling) ? 32 : 64);
    const LocalTensor<float> x = Filled(values, 1.0f);
    ReduceSum(sum.Get<float>(), x, work.Get<float>(), 16 * N);
}

extern "C" __global__ __aicore__ void sum_lanes(GM_ADDR in, GM_ADDR out, GM_ADDR tiling)
{
    (void)in, (void)out;
    TPipe pipe;
    Scratch values, sums;
    pipe.InitBuffer(values, 4 * BYTES);
    pipe.InitBuffer(sums, 32);
    const LocalTensor<float> x = Filled(values, 1.0f);
    WholeReduceSum(sums.Get<float>(), x, 64, 4, 1, 1, 8);
    PipeBarrier<PIPE_V>();
    Adds(sums.Get<float>(), sums.Get<float>(), 1.0f, Planted(tiling) ? 8 : 4);
}

extern "C" __global__ __aicore__ void no_buffer(GM_ADDR in, GM_ADDR out, GM_ADDR tiling)
{
    (void)out;
    TPipe pipe;
    In ins;
    if (!Planted(tiling)) {
        pipe.InitBuffer(ins, 1, BYTES);
    }
    LocalTensor<float> x = Fetch(ins, in);
    ins.FreeTensor(x);
}
