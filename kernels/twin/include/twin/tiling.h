// The tiling struct: plain data in GM, read by the scalar unit word by word.
#pragma once

#include "tensor.h"

namespace twin {

template <typename T> T ReadStruct(GM_ADDR address, At at = At::Here())
{
    static_assert(std::is_trivially_copyable_v<T>, "a tiling is plain data");
    machine.Issue(S, "GET_TILING_DATA", at);
    Region &region = machine.RegionAt(address);
    if (region.role != Region::TILING) {
        Fail("the tiling address points into %s", region.name.c_str());
    }
    region.Read(machine.pipes, S, machine.Block(), address - region.base, sizeof(T));
    if (sizeof(T) != region.size) {
        Fail("the kernel reads a tiling of %zu bytes, the host wrote %llu", sizeof(T),
             static_cast<unsigned long long>(region.size));
    }
    T value;
    std::memcpy(&value, address, sizeof value);
    return value;
}

} // namespace twin

#define REGISTER_TILING_DEFAULT(STRUCT) static_assert(std::is_trivially_copyable_v<STRUCT>)
#define GET_TILING_DATA_WITH_STRUCT(STRUCT, name, address) \
    const STRUCT name = twin::ReadStruct<STRUCT>(address)
#define KERNEL_TYPE_AIV_ONLY 0
#define KERNEL_TASK_TYPE_DEFAULT(KIND) static_assert((KIND) == KERNEL_TYPE_AIV_ONLY)
