// The C face of a twin: Python hands over tensors and a tiling, the blocks run one after another,
// results and counts come back. Compiled together with one kernel file.
#include "kernel_operator.h"

#ifdef TWIN_TILING_HEADER
#include TWIN_TILING_HEADER
#endif

namespace {

constexpr int MAX_ARGUMENTS = 12;

template <size_t... I>
void CallWith(void *kernel, GM_ADDR *arguments, std::index_sequence<I...>)
{
    using Kernel = void (*)(decltype((void)I, GM_ADDR{})...);
    reinterpret_cast<Kernel>(kernel)(arguments[I]...);
}

template <size_t N = 1> void Call(void *kernel, GM_ADDR *arguments, int count)
{
    if constexpr (N <= MAX_ARGUMENTS) {
        if (static_cast<int>(N) == count) {
            CallWith(kernel, arguments, std::make_index_sequence<N>());
        } else {
            Call<N + 1>(kernel, arguments, count);
        }
    } else {
        twin::Fail("a kernel of %d arguments: the twin calls up to %d", count, MAX_ARGUMENTS);
    }
}

void CopyCounts(int64_t *counts)
{
    const twin::Counts &from = twin::machine.counts;
    int64_t *to = counts;
    for (const uint64_t instructions : from.instructions) {
        *to++ = static_cast<int64_t>(instructions);
    }
    for (const uint64_t value : {from.vector_repeats, from.dma, from.bursts, from.short_bursts,
                                 from.bytes_in, from.bytes_out, from.ub_peak}) {
        *to++ = static_cast<int64_t>(value);
    }
}

} // namespace

// Returns 0, or 1 with the fault's text in `message`. Outputs are copied back only after a clean
// run. `unwritten` takes, per argument, the bytes of an output that no block wrote.
extern "C" __attribute__((visibility("default"))) int twin_run(
    void *kernel, const char *name, int arguments, const char *const *names, void *const *data,
    const int64_t *sizes, const int32_t *roles, int blocks, int strict, int64_t *counts,
    int64_t *unwritten, char *message, int64_t message_size)
{
    using twin::machine;
    twin::position.kernel = name;
    machine.counts = {};
    machine.blocks = blocks;
    machine.pipes.strict = strict;
    machine.regions.clear();
    AscendC::TPipe::current = nullptr;
    int result = 0;
    try {
        std::vector<GM_ADDR> addresses;
        for (int i = 0; i < arguments; ++i) {
            const auto role = static_cast<twin::Region::Role>(roles[i]);
            machine.regions.push_back(std::make_unique<twin::Region>(names[i], role, sizes[i]));
            twin::Region &region = *machine.regions.back();
            if (region.size && role != twin::Region::OUTPUT && role != twin::Region::SCRATCH) {
                std::memcpy(region.base, data[i], region.size);
            }
            addresses.push_back(region.base);
        }
        for (int block = 0; block < blocks; ++block) {
            machine.Begin(block);
            Call(kernel, addresses.data(), arguments);
            machine.End();
        }
        for (int i = 0; i < arguments; ++i) {
            const twin::Region &region = *machine.regions[i];
            const bool output = region.role == twin::Region::OUTPUT;
            unwritten[i] = output ? static_cast<int64_t>(region.Unwritten()) : 0;
            if (region.size && (output || region.role == twin::Region::IN_PLACE)) {
                std::memcpy(data[i], region.base, region.size);
            }
        }
    } catch (const twin::Fault &fault) {
        std::snprintf(message, message_size, "%s", fault.text.c_str());
        result = 1;
    }
    CopyCounts(counts);
    machine.regions.clear();
    return result;
}

#ifdef TWIN_TILING_HEADER
// The plan of the operation's own tiling header, the one that op_host registers with CANN.
// `shape` is its Shape as 64-bit integers. Returns the number of blocks, or -1 with a text.
extern "C" __attribute__((visibility("default"))) int64_t twin_plan(
    const int64_t *shape, int64_t fields, int64_t cores, int64_t ub_bytes, void *tiling,
    int64_t capacity, int64_t *size)
{
    using loopmoe::TWIN_OPERATION::Plan;
    using loopmoe::TWIN_OPERATION::Shape;
    using loopmoe::TWIN_OPERATION::Tiling;
    Shape given;
    Tiling plan;
    *size = sizeof plan;
    if (fields * static_cast<int64_t>(sizeof(int64_t)) != sizeof given || *size > capacity) {
        return -1;
    }
    std::memcpy(&given, shape, sizeof given);
    const int64_t blocks = Plan(given, {cores, ub_bytes}, plan);
    std::memcpy(tiling, &plan, sizeof plan);
    return blocks;
}
#endif
