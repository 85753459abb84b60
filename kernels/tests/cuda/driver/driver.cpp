// A stand-in for NVIDIA's driver and the libraries over it, as one shared library: what programs call comes in, and is done on the CPU, by the
// rules of a device as far as they are written down (work.h), with the kernels' own code (code.h). What this cannot show is a device's
// arithmetic and speed, and that NVIDIA's rules are what is written here.
//
// One card of compute capability 8.0 with STAND_IN_CUDA_BYTES of memory (4 GiB). Whatever else is called fails with error 999, and says its name.

#include "code.h"

#define LOCK const std::lock_guard lock(whole)
#define TRY(call)                                                                                                         \
    if (const Result result = (call); result != SUCCESS) {                                                                \
        return result;                                                                                                    \
    }

extern "C" {

Result cuInit(unsigned) { return SUCCESS; }
Result cuDriverGetVersion(int *version) { return *version = 13000, SUCCESS; }
Result cuDeviceGetCount(int *count) { return *count = 1, SUCCESS; }
Result cuDeviceGet(int *device, int ordinal) { return ordinal == 0 ? (*device = 0, SUCCESS) : (Result)101; }
Result cuDeviceGetName(char *name, int length, int) { return snprintf(name, (size_t)length, "Stand-in"), SUCCESS; }
Result cuDeviceTotalMem_v2(size_t *bytes, int) { return *bytes = total_bytes(), SUCCESS; }
Result cuDeviceGetUuid_v2(char *uuid, int) { return memset(uuid, 7, 16), SUCCESS; }
Result cuDeviceGetAttribute(int *value, int attribute, int) {
    const std::map<int, int> known = {{1, 1024}, {10, 32}, {16, 4}, {75, 8}, {76, 0}, {115, 1}};
    const auto found = known.find(attribute);
    *value = found == known.end() ? 0 : found->second;
    return SUCCESS;
}
Result cuDevicePrimaryCtxRetain(void **context, int) { return *context = (void *)1, SUCCESS; }
Result cuDevicePrimaryCtxRelease_v2(int) { return SUCCESS; }
Result cuCtxGetCurrent(void **context) { return *context = (void *)1, SUCCESS; }
Result cuCtxSetCurrent(void *) { return SUCCESS; }
Result cuCtxSynchronize() {
    LOCK;
    TRY(refuse("the device is waited for"));
    run_all();
    return broken;
}
Result cuGetErrorName(int, const char **text) { return *text = "STAND_IN_ERROR", SUCCESS; }
Result cuGetErrorString(int code, const char **text) {
    return *text = code == OUT_OF_MEMORY ? "out of memory" : "an error of the stand-in", SUCCESS;
}

Result cuMemGetInfo_v2(size_t *free_bytes, size_t *total) {
    LOCK;
    return *total = total_bytes(), *free_bytes = *total - live_bytes, SUCCESS;
}
Result cuMemAllocAsync(Address *address, size_t bytes, void *stream) {
    LOCK;
    TRY(broken);
    *address = take(bytes);
    if (*address == 0) {
        return OUT_OF_MEMORY;
    }
    if (Graph *graph = of(stream).recording.get()) {
        graph->memory.push_back(*address);
        graph->open.push_back(*address);
    }
    return SUCCESS;
}
Result cuMemFreeAsync(Address address, void *handle) {
    LOCK;
    Stream &stream = of(handle);
    if (Graph *graph = stream.recording.get()) {
        if (std::erase(graph->open, address) == 0) {
            stream.is_invalid = true;
            say("memory is freed in a graph that was not allocated in it");
            return INVALID_VALUE;
        }
        // It is the graph's for ever, and holds nothing from here on.
        const size_t bytes = blocks[address].bytes;
        return stream.add([=] { memset((void *)address, 0xff, bytes); });
    }
    // Also of a device that is lost.
    stream.waiting.push_back([=] { give(address); });
    return SUCCESS;
}
Result cuMemHostAlloc(void **memory, size_t bytes, unsigned) {
    LOCK;
    TRY(refuse("host memory is allocated"));
    if (!(*memory = malloc(bytes))) {
        return OUT_OF_MEMORY;
    }
    memset(*memory, 0xff, bytes);
    pinned[(Address)*memory] = bytes;
    return SUCCESS;
}
Result cuMemFreeHost(void *memory) {
    LOCK;
    pinned.erase((Address)memory);
    return free(memory), SUCCESS;
}
Result cuMemcpyHtoDAsync_v2(Address to, const void *from, size_t bytes, void *stream) {
    LOCK;
    TRY(refuse("the host's memory is copied"));
    const bool is_late = is_pinned(from, bytes);
    const std::vector<char> staged((const char *)from, (const char *)from + (is_late ? 0 : bytes));
    return of(stream).add([=] {
        is_good(to, bytes) ? (void)memcpy((void *)to, is_late ? from : staged.data(), bytes) : (void)breaks("a copy to what is not there");
    });
}
Result cuMemcpyDtoHAsync_v2(void *to, Address from, size_t bytes, void *stream) {
    LOCK;
    TRY(refuse("memory is copied to the host"));
    TRY(of(stream).add([=] { is_good(from, bytes) ? (void)memcpy(to, (void *)from, bytes) : (void)breaks("a copy from what is not there"); }));
    // What is not pinned is there when the call returns.
    if (!is_pinned(to, bytes)) {
        of(stream).run();
    }
    return broken;
}
Result cuMemcpyDtoDAsync_v2(Address to, Address from, size_t bytes, void *stream) {
    LOCK;
    return of(stream).add([=] {
        is_good(to, bytes) && is_good(from, bytes) ? (void)memmove((void *)to, (void *)from, bytes)
                                                   : (void)breaks("a copy within what is not there");
    });
}
Result cuMemsetD8Async(Address to, unsigned char value, size_t bytes, void *stream) {
    LOCK;
    return of(stream).add([=] { is_good(to, bytes) ? (void)memset((void *)to, value, bytes) : (void)breaks("zeros into what is not there"); });
}

Result cuStreamCreate(void **stream, unsigned) { return *stream = new Stream, SUCCESS; }
Result cuStreamDestroy_v2(void *stream) { return delete (Stream *)stream, SUCCESS; }
Result cuStreamSynchronize(void *stream) {
    LOCK;
    TRY(refuse("a stream is waited for"));
    of(stream).run();
    return broken;
}
Result cuStreamIsCapturing(void *handle, int *status) {
    LOCK;
    const Stream &stream = of(handle);
    return *status = stream.recording ? (stream.is_invalid ? 2 : 1) : 0, SUCCESS;
}
Result cuStreamBeginCapture_v2(void *handle, int) {
    LOCK;
    TRY(refuse("a recording begins"));
    TRY(broken);
    recorder = &of(handle);
    recorder->recording = std::make_unique<Graph>();
    recorder->is_invalid = false;
    return SUCCESS;
}
Result cuStreamEndCapture(void *handle, Graph **graph) {
    LOCK;
    Stream &stream = of(handle);
    *graph = nullptr;
    if (recorder != &stream) {
        return INVALID_VALUE;
    }
    recorder = nullptr;
    std::unique_ptr<Graph> recorded = std::move(stream.recording);
    if (stream.is_invalid) {
        return CAPTURE_INVALIDATED;
    }
    *graph = recorded.release();
    return SUCCESS;
}
Result cuGraphInstantiateWithFlags(Graph **runs, Graph *graph, unsigned long long) { return *runs = graph, SUCCESS; }
Result cuGraphUpload(Graph *, void *) { return SUCCESS; }
Result cuGraphLaunch(Graph *graph, void *stream) {
    LOCK;
    TRY(refuse("a graph is launched"));
    if (graph->has_run && !graph->open.empty()) {
        say("a graph runs again whose memory was not freed");
        return INVALID_VALUE;
    }
    graph->has_run = true;
    const std::vector<Work> nodes = graph->nodes;
    return of(stream).add([=] {
        for (const Work &node : nodes) {
            if (broken == SUCCESS) {
                node();
            }
        }
    });
}
Result cuGraphExecDestroy(Graph *) { return SUCCESS; }
Result cuGraphDestroy(Graph *graph) {
    LOCK;
    delete graph;
    return SUCCESS;
}

// An event is the stream that it was recorded on: whoever waits for it waits for all that is there.
Result cuEventCreate(void ***event, unsigned) { return *event = new void *(nullptr), SUCCESS; }
Result cuEventDestroy_v2(void **event) { return delete event, SUCCESS; }
Result cuEventRecord(void **event, void *stream) { return *event = stream, SUCCESS; }
Result cuEventSynchronize(void **event) { return *event ? cuStreamSynchronize(*event) : SUCCESS; }
Result cuStreamWaitEvent(void *, void **event, unsigned) { return cuEventSynchronize(event); }

Result cuModuleLoadData(void **module, const void *) {
    TRY(refuse("code is loaded"));
    return *module = (void *)1, SUCCESS;
}
Result cuModuleUnload(void *) { return SUCCESS; }
Result cuModuleGetFunction(const Code **function, void *, const char *name) {
    const auto found = codes().find(name);
    if (found == codes().end()) {
        say("there is no kernel %s", name);
        return NOT_FOUND;
    }
    *function = &found->second;
    return SUCCESS;
}
Result cuLaunchKernel(const Code *function, unsigned grid_x, unsigned grid_y, unsigned grid_z, unsigned block_x, unsigned block_y,
                      unsigned block_z, unsigned, void *stream, void **arguments, void **) {
    LOCK;
    if (grid_x == 0 || grid_y == 0 || grid_z == 0 || grid_y > 65535 || grid_z > 65535 || block_x * block_y * block_z > 1024) {
        say("a grid of %u x %u x %u blocks of %u x %u x %u threads", grid_x, grid_y, grid_z, block_x, block_y, block_z);
        return INVALID_VALUE;
    }
    return of(stream).add((*function)({grid_x, grid_y, grid_z}, {block_x, block_y, block_z}, arguments));
}

// cuBLAS: products of matrices that lie column by column, summed in f64. A handle is its stream.
int cublasCreate_v2(void ***handle) { return *handle = new void *(nullptr), 0; }
int cublasDestroy_v2(void **handle) { return delete handle, 0; }
int cublasSetStream_v2(void **handle, void *stream) { return *handle = stream, 0; }
int cublasGemmStridedBatchedEx(void **handle, int transposes_a, int transposes_b, int m, int n, int k, const void *alpha, const void *a,
                               int type, int lda, long long stride_a, const void *b, int, int ldb, long long stride_b, const void *beta,
                               void *c, int, int ldc, long long stride_c, int batch, int, int) {
    LOCK;
    if (*(const float *)alpha != 1.0f || *(const float *)beta != 0.0f) {
        return say("a product with factors"), 15;
    }
    const auto run = [=]<typename T>(T) {
        const auto product = [=] {
            check(a), check(b), check(c);
            for (long long i = 0; i < batch && broken == SUCCESS; i++) {
                const T *x = (const T *)a + i * stride_a, *y = (const T *)b + i * stride_b;
                for (size_t column = 0; column < (size_t)n; column++) {
                    for (size_t row = 0; row < (size_t)m; row++) {
                        double sum = 0;
                        for (size_t at = 0; at < (size_t)k; at++) {
                            sum += (double)(float)x[transposes_a ? row * lda + at : at * lda + row] *
                                   (double)(float)y[transposes_b ? at * ldb + column : column * ldb + at];
                        }
                        ((T *)c + i * stride_c)[column * ldc + row] = T((float)sum);
                    }
                }
            }
        };
        return of(*handle).add(product) == SUCCESS ? 0 : 14;
    };
    switch (type) {
    case 0:
        return run(float());
    case 2:
        return run(__half());
    case 14:
        return run(__nv_bfloat16());
    }
    return say("a product of type %d", type), 15;
}

// cuRAND: nothing is drawn. A generator is its stream.
int curandCreateGenerator(void ***generator, int) { return *generator = new void *(nullptr), 0; }
int curandDestroyGenerator(void **generator) { return delete generator, 0; }
int curandSetPseudoRandomGeneratorSeed(void *, unsigned long long) { return 0; }
int curandSetStream(void **generator, void *stream) { return *generator = stream, 0; }
int curandGenerateUniform(void **generator, float *out, size_t count) {
    LOCK;
    return of(*generator).add([=] { std::fill(out, out + count, 0.25f); }) == SUCCESS ? 0 : 201;
}

} // extern "C"
