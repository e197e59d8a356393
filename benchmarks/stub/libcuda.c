/* A CUDA driver that does nothing, for Triton's launcher on a machine without a GPU: what a launch costs the
   host without the driver's own time, and what it hands over. Kernels load, none runs. */

#include <stddef.h>
#include <stdint.h>
#include <string.h>

enum { LAUNCHES = 64, PARAMETERS = 5 }; /* every kernel has at least three, and Triton adds two */

typedef struct {
    unsigned grid[3], block[3], shared;
    void *stream, *attributes;
    unsigned attribute_count;
} Config; /* CUlaunchConfig */

typedef struct {
    int64_t grid[3], threads, shared, stream, function, parameters[PARAMETERS];
} Launch;

int64_t launch_count = 0;
Launch launches[LAUNCHES]; /* the last ones */

int cuLaunchKernelEx(const Config *config, void *function, void **parameters, void **extra) {
    (void)extra;
    Launch *launch = &launches[launch_count++ % LAUNCHES];
    for (int n = 0; n < 3; ++n) launch->grid[n] = config->grid[n];
    launch->threads = config->block[0];
    launch->shared = config->shared;
    launch->stream = (intptr_t)config->stream;
    launch->function = (intptr_t)function;
    for (int n = 0; n < PARAMETERS; ++n) memcpy(&launch->parameters[n], parameters[n], sizeof(int64_t));
    return 0;
}

int cuModuleLoadData(void **module, const void *image) {
    (void)image;
    static intptr_t loaded = 0;
    *module = (void *)++loaded;
    return 0;
}

int cuModuleGetFunction(void **function, void *module, const char *name) {
    (void)name;
    *function = module; /* one kernel each */
    return 0;
}

/* memory of the host passes for the device's */
int cuPointerGetAttribute(void *data, int attribute, unsigned long long pointer) {
    (void)attribute;
    memcpy(data, &pointer, sizeof pointer);
    return 0;
}

int cuDeviceGetAttribute(int *value, int attribute, int device) {
    (void)attribute, (void)device;
    *value = 227 << 10; /* asked for: shared memory, which must do for every kernel */
    return 0;
}

int cuFuncGetAttribute(int *value, int attribute, void *function) {
    (void)attribute, (void)function;
    *value = 1024; /* threads in a block, say */
    return 0;
}

int cuCtxGetCurrent(void **context) {
    static int only;
    *context = &only;
    return 0;
}

int cuDeviceGet(int *device, int ordinal) {
    *device = ordinal;
    return 0;
}

int cuDevicePrimaryCtxRetain(void **context, int device) {
    (void)device;
    return cuCtxGetCurrent(context);
}

int cuDriverGetVersion(int *version) {
    *version = 13000;
    return 0;
}

int cuGetErrorString(int error, const char **text) {
    (void)error;
    *text = "no error of this driver";
    return 0;
}

/* looked up by Triton, not called for our kernels */
int cuCtxSetCurrent(void *context) { return context == NULL; }
int cuCtxGetLimit(size_t *value, int limit) { return (void)value, (void)limit, 1; }
int cuCtxSetLimit(int limit, size_t value) { return (void)value, (void)limit, 1; }
int cuFuncSetAttribute(void *f, int attribute, int value) { return (void)f, (void)attribute, (void)value, 0; }
int cuFuncSetCacheConfig(void *function, int config) { return (void)function, (void)config, 0; }
int cuOccupancyMaxActiveClusters(void) { return 1; }
int cuTensorMapEncodeTiled(void) { return 1; }
int cuTensorMapEncodeIm2col(void) { return 1; }
