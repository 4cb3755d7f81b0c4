// Stand-in, written for the tests: the names of CANN's platform query that op_host uses.
#pragma once

#include <cstdint>

namespace fe {
struct PlatFormInfos {
    uint32_t cores = 0;
    uint64_t ub_bytes = 0;
};
} // namespace fe

namespace platform_ascendc {

enum class CoreMemType { L0_A, L0_B, L0_C, L1, L2, UB, HBM };

class PlatformAscendC {
public:
    explicit PlatformAscendC(fe::PlatFormInfos *infos) : infos_(infos) {}
    uint32_t GetCoreNumAiv() const { return infos_->cores; }
    void GetCoreMemSize(const CoreMemType &type, uint64_t &size) const
    {
        size = type == CoreMemType::UB ? infos_->ub_bytes : 0;
    }

private:
    fe::PlatFormInfos *infos_;
};

} // namespace platform_ascendc
