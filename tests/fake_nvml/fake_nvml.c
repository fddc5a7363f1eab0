/* A libnvidia-ml.so.1 of GPUs that do not exist, for tests: as much of NVML as labkit, setup/install.py, Ray and vLLM
 * call to look at a machine.
 *
 *     gcc -shared -fPIC -o DIR/libnvidia-ml.so.1 fake_nvml.c
 *     LD_LIBRARY_PATH=DIR FAKE_NVML_COUNT=1 labkit doctor
 *
 * Lists are separated by semicolons, an item for each GPU; the last item counts for all further ones.
 *
 *     FAKE_NVML_COUNT       number of GPUs                    1
 *     FAKE_NVML_NAME        list                              NVIDIA H100 80GB HBM3
 *     FAKE_NVML_TOTAL_MIB   list, MiB                         81559
 *     FAKE_NVML_USED_MIB    list, MiB                         0
 *     FAKE_NVML_CAPABILITY  list, MAJOR.MINOR                 9.0
 *     FAKE_NVML_MIG         list: -1 unsupported, 0 off, N instances that share the memory equally   -1
 *     FAKE_NVML_DRIVER      driver version                    580.95.05
 *     FAKE_NVML_CUDA        13000 for CUDA 13.0; 0: the function fails   13000
 *     FAKE_NVML_INIT        what nvmlInit returns             0
 */

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { SUCCESS = 0, INVALID_ARGUMENT = 2, NOT_SUPPORTED = 3, NOT_FOUND = 6, FUNCTION_NOT_FOUND = 13 };
enum { MOST_GPUS = 16, MOST_INSTANCES = 7 };

typedef int nvmlReturn;
typedef struct {
    int gpu;
    int instance; /* -1: the whole GPU */
} Device;
typedef Device *nvmlDevice;
typedef struct {
    unsigned long long total, free, used;
} nvmlMemory;
typedef struct {
    unsigned int gpu, memory; /* percent */
} nvmlUtilization;

static Device devices[MOST_GPUS][1 + MOST_INSTANCES];

static const char *setting(const char *name, const char *fallback) {
    const char *value = getenv(name);
    return value ? value : fallback;
}

/* The item of a list that counts for the GPU, copied into `item`. */
static void item_of(const char *name, const char *fallback, int gpu, char *item, size_t size) {
    const char *start = setting(name, fallback), *end;
    for (; gpu > 0 && (end = strchr(start, ';')) != NULL; gpu--) start = end + 1;
    snprintf(item, size, "%.*s", (int)strcspn(start, ";"), start);
}

static long number_of(const char *name, const char *fallback, int gpu) {
    char item[64];
    item_of(name, fallback, gpu, item, sizeof item);
    return atol(item);
}

static int gpu_count(void) { return (int)number_of("FAKE_NVML_COUNT", "1", 0); }

static long instance_count(int gpu) { return number_of("FAKE_NVML_MIG", "-1", gpu); }

nvmlReturn nvmlInitWithFlags(unsigned int flags) {
    (void)flags;
    return atoi(setting("FAKE_NVML_INIT", "0"));
}

nvmlReturn nvmlInit_v2(void) { return nvmlInitWithFlags(0); }

nvmlReturn nvmlShutdown(void) { return SUCCESS; }

const char *nvmlErrorString(nvmlReturn result) { return result == NOT_SUPPORTED ? "Not Supported" : "fake NVML error"; }

nvmlReturn nvmlSystemGetDriverVersion(char *version, unsigned int length) {
    snprintf(version, length, "%s", setting("FAKE_NVML_DRIVER", "580.95.05"));
    return SUCCESS;
}

nvmlReturn nvmlSystemGetCudaDriverVersion_v2(int *version) {
    *version = atoi(setting("FAKE_NVML_CUDA", "13000"));
    return *version ? SUCCESS : FUNCTION_NOT_FOUND;
}

nvmlReturn nvmlDeviceGetCount_v2(unsigned int *count) {
    *count = (unsigned int)gpu_count();
    return SUCCESS;
}

nvmlReturn nvmlDeviceGetHandleByIndex_v2(unsigned int index, nvmlDevice *device) {
    if (index >= (unsigned int)gpu_count() || index >= MOST_GPUS) return INVALID_ARGUMENT;
    *device = &devices[index][0];
    **device = (Device){(int)index, -1};
    return SUCCESS;
}

nvmlReturn nvmlDeviceGetMigMode(nvmlDevice device, unsigned int *current, unsigned int *pending) {
    long instances = instance_count(device->gpu);
    if (instances < 0 || device->instance >= 0) return NOT_SUPPORTED;
    *current = *pending = instances > 0;
    return SUCCESS;
}

nvmlReturn nvmlDeviceGetMaxMigDeviceCount(nvmlDevice device, unsigned int *count) {
    (void)device;
    *count = MOST_INSTANCES;
    return SUCCESS;
}

nvmlReturn nvmlDeviceGetMigDeviceHandleByIndex(nvmlDevice device, unsigned int index, nvmlDevice *instance) {
    if ((long)index >= instance_count(device->gpu) || index >= MOST_INSTANCES) return NOT_FOUND;
    *instance = &devices[device->gpu][1 + index];
    **instance = (Device){device->gpu, (int)index};
    return SUCCESS;
}

nvmlReturn nvmlDeviceGetName(nvmlDevice device, char *name, unsigned int length) {
    char gpu[96];
    item_of("FAKE_NVML_NAME", "NVIDIA H100 80GB HBM3", device->gpu, gpu, sizeof gpu);
    snprintf(name, length, "%s%s", gpu, device->instance < 0 ? "" : " MIG");
    return SUCCESS;
}

nvmlReturn nvmlDeviceGetUUID(nvmlDevice device, char *uuid, unsigned int length) {
    if (device->instance < 0) snprintf(uuid, length, "GPU-fake-%d", device->gpu);
    else snprintf(uuid, length, "MIG-fake-%d-%d", device->gpu, device->instance);
    return SUCCESS;
}

nvmlReturn nvmlDeviceGetMemoryInfo(nvmlDevice device, nvmlMemory *memory) {
    long parts = device->instance < 0 ? 1 : instance_count(device->gpu);
    memory->total = (unsigned long long)(number_of("FAKE_NVML_TOTAL_MIB", "81559", device->gpu) / parts) << 20;
    memory->used = (unsigned long long)(number_of("FAKE_NVML_USED_MIB", "0", device->gpu) / parts) << 20;
    memory->free = memory->total - memory->used;
    return SUCCESS;
}

nvmlReturn nvmlDeviceGetCudaComputeCapability(nvmlDevice device, int *major, int *minor) {
    char capability[16];
    item_of("FAKE_NVML_CAPABILITY", "9.0", device->gpu, capability, sizeof capability);
    return sscanf(capability, "%d.%d", major, minor) == 2 ? SUCCESS : NOT_SUPPORTED;
}

nvmlReturn nvmlDeviceGetUtilizationRates(nvmlDevice device, nvmlUtilization *rates) {
    if (device->instance >= 0) return NOT_SUPPORTED;
    *rates = (nvmlUtilization){42, 7};
    return SUCCESS;
}
