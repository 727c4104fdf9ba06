/* A management library of four made-up GPUs, with the types of the NVML API reference written out.
   0 and 1 are joined by two NVLinks, 2 and 3 through switches by three; between the two there is
   only the way between NUMA nodes. 1 idles, 2 is in a bad slot, everything is wrong with 3.
   FAKE_NVML_HIDDEN hides the ends of the links, as virtual machines do. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct { unsigned long long total, free, used; } Memory;
typedef struct {
    char busIdLegacy[16];
    unsigned int domain, bus, device, pciDeviceId, pciSubSystemId;
    char busId[32];
} PciInfo;
typedef struct { int index; } Gpu;
static Gpu gpus[4] = {{0}, {1}, {2}, {3}};
static const char *uuids[4] = {"GPU-a", "GPU-b", "GPU-c", "GPU-d"};
enum { OK = 0, INVALID = 2, UNSUPPORTED = 3, MISSING = 6 };

int nvmlInit_v2(void) { return OK; }
int nvmlShutdown(void) { return OK; }
int nvmlSystemGetDriverVersion(char *text, unsigned size) { return snprintf(text, size, "580.1") < 0; }
int nvmlDeviceGetCount_v2(unsigned *count) { *count = 4; return OK; }
int nvmlDeviceGetHandleByIndex_v2(unsigned i, Gpu **gpu) {
    if (i > 3) return INVALID;
    *gpu = &gpus[i];
    return OK;
}
int nvmlDeviceGetHandleByUUID(const char *uuid, Gpu **gpu) {
    for (int i = 0; i < 4; i++)
        if (!strcmp(uuid, uuids[i])) { *gpu = &gpus[i]; return OK; }
    return MISSING;
}
int nvmlDeviceGetName(Gpu *gpu, char *text, unsigned size) {
    return snprintf(text, size, "Made-up %d", gpu->index) < 0;
}
int nvmlDeviceGetUUID(Gpu *gpu, char *text, unsigned size) {
    return snprintf(text, size, "%s", uuids[gpu->index]) < 0;
}
static int bus_of(int index, PciInfo *info) {
    memset(info, 0, sizeof *info);
    snprintf(info->busIdLegacy, 16, "0000:%02X:00.0", 0x1a + index);
    snprintf(info->busId, 32, "00000000:%02X:00.0", 0x1a + index);
    return OK;
}
int nvmlDeviceGetPciInfo_v3(Gpu *gpu, PciInfo *info) { return bus_of(gpu->index, info); }
int nvmlDeviceGetMemoryInfo(Gpu *gpu, Memory *memory) {
    memory->total = 80000000000ull;
    memory->free = gpu->index == 3 ? 30000000000ull : 79000000000ull;
    memory->used = memory->total - memory->free;
    return OK;
}
int nvmlDeviceGetComputeMode(Gpu *gpu, unsigned *mode) { *mode = gpu->index == 3 ? 3 : 0; return OK; }
int nvmlDeviceGetCurrPcieLinkGeneration(Gpu *gpu, unsigned *n) {
    *n = gpu->index == 1 || gpu->index == 2 ? 1 : 5;
    return OK;
}
int nvmlDeviceGetMaxPcieLinkGeneration(Gpu *gpu, unsigned *n) { (void)gpu; *n = 5; return OK; }
int nvmlDeviceGetCurrPcieLinkWidth(Gpu *gpu, unsigned *n) { *n = gpu->index == 2 ? 8 : 16; return OK; }
int nvmlDeviceGetMaxPcieLinkWidth(Gpu *gpu, unsigned *n) { (void)gpu; *n = 16; return OK; }
int nvmlDeviceGetPerformanceState(Gpu *gpu, unsigned *n) { *n = gpu->index == 1 ? 8 : 0; return OK; }
int nvmlDeviceGetTotalEccErrors(Gpu *gpu, unsigned kind, unsigned counter, unsigned long long *n) {
    if (kind != 1 || counter != 0) return INVALID;
    if (gpu->index == 0) return UNSUPPORTED;
    *n = gpu->index == 3 ? 2 : 0;
    return OK;
}
int nvmlDeviceGetCurrentClocksThrottleReasons(Gpu *gpu, unsigned long long *bits) {
    *bits = gpu->index == 3 ? 0x40 | 0x08 | 0x04 : 0x01 | 0x04;
    return OK;
}
int nvmlDeviceGetMigMode(Gpu *gpu, unsigned *current, unsigned *pending) {
    *current = gpu->index == 3;
    *pending = 0;
    return OK;
}
int nvmlDeviceGetTopologyCommonAncestor(Gpu *one, Gpu *other, unsigned *level) {
    *level = one->index / 2 == other->index / 2 ? 20 : 50;
    return OK;
}
int nvmlDeviceGetP2PStatus(Gpu *one, Gpu *other, unsigned index, unsigned *status) {
    int together = one->index / 2 == other->index / 2;
    *status = together ? 0 : index == 2 ? 5 : 3;
    return OK;
}
int nvmlDeviceGetNvLinkState(Gpu *gpu, unsigned link, unsigned *active) {
    if (link >= 4) return INVALID;
    *active = link < (gpu->index < 2 ? 2u : 3u);
    return OK;
}
int nvmlDeviceGetNvLinkRemoteDeviceType(Gpu *gpu, unsigned link, unsigned *kind) {
    (void)link;
    if (getenv("FAKE_NVML_HIDDEN")) return UNSUPPORTED;
    *kind = gpu->index < 2 ? 0 : 2;
    return OK;
}
int nvmlDeviceGetNvLinkRemotePciInfo_v2(Gpu *gpu, unsigned link, PciInfo *info) {
    (void)link;
    if (getenv("FAKE_NVML_HIDDEN")) return UNSUPPORTED;
    return bus_of(gpu->index < 2 ? 1 - gpu->index : 100, info);
}
