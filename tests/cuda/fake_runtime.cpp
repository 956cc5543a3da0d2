/*
 * The CUDA runtime's functions that cuda/ calls, without a device: streams run late and in random turns, graphs in random order.
 *
 *   EMU_SEED=n               another order of everything
 *   EMU_DEVICES=n            devices (1), EMU_MEMORY=bytes of each (4 GiB), EMU_CAPABILITY=8.0, EMU_DRIVER=0: no driver
 *   EMU_FAULT=call:n:code[,...]   the n-th such call (from 1; "launch" for kernels, "step" for what streams do later) fails with the code
 *
 * Nothing of a stream runs until something waits or asks; then the next stream that can go on is drawn, and makes one step.
 */
#include "tests/cuda/fake.h"
#include "tests/cuda/emu.h"
#undef warpSize /* a field here */
#include <algorithm>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <new>
#include <random>
#include <set>
#include <stdio.h>
#include <stdlib.h>
#include <string>
#include <vector>

namespace {

struct node {
    std::function<bool()> work;      /* false: the device failed; emu_error() says why */
    std::set<size_t> after;
    std::string name;
};

struct graph_nodes {
    std::vector<node> nodes;
    std::vector<std::vector<size_t>> before; /* what comes after each; made when the graph is whole */
};

struct replay {
    std::shared_ptr<const graph_nodes> graph;
    std::vector<size_t> waits_for;   /* of each node, how many that are not done */
    std::vector<size_t> can;         /* nodes that wait for none */
};

} // namespace

struct CUevent_st {
    uint64_t recorded = 0, done = 0;
    uint64_t capture = 0;            /* recorded while this one was made */
    std::set<size_t> frontier;
    bool timing = true;
    double at = 0.0;
};

struct CUgraph_st {
    uint64_t number = 0;
    std::shared_ptr<graph_nodes> graph = std::make_shared<graph_nodes>();
    CUstream_st *origin = nullptr;
    std::set<CUstream_st *> joined;
    bool broken = false;
};

struct CUgraphExec_st {
    std::shared_ptr<const graph_nodes> graph;
};

namespace {

struct item {
    enum kind_t { WORK, RECORD, WAIT, GRAPH } kind;
    std::function<bool()> work;
    cudaEvent_t event = nullptr;
    uint64_t version = 0;
    replay graph;
};

} // namespace

struct CUstream_st {
    std::deque<item> queue;
    CUgraph_st *capture = nullptr;
    std::set<size_t> frontier;       /* of the capture: what the next node comes after */
};

namespace {

struct allocation {
    size_t bytes;
    bool device;
};

struct machine {
    std::mt19937_64 random;
    std::vector<CUstream_st *> streams;
    CUstream_st ordinary;            /* stream 0 */
    std::map<char *, allocation> memory;
    std::map<std::string, uint64_t> calls;
    cudaError_t last = cudaSuccess, sticky = cudaSuccess;
    CUgraph_st *capture = nullptr;
    uint64_t captures = 0;
    int device = 0;
    double clock = 0.0;
    fake_meter meter = {};

    machine()
    {
        const char *seed = getenv("EMU_SEED");
        random.seed(seed ? strtoull(seed, nullptr, 10) : 1);
        streams.push_back(&ordinary);
    }
};

machine &here()
{
    static machine *one = new machine; /* never destroyed: what ends late may still ask */
    return *one;
}

long long setting(const char *name, long long otherwise)
{
    const char *text = getenv(name);
    return text && text[0] ? strtoll(text, nullptr, 10) : otherwise;
}

bool sticky(cudaError_t status)
{
    return status == cudaErrorECCUncorrectable || (status >= cudaErrorIllegalAddress && status <= cudaErrorLaunchFailure && status != cudaErrorPeerAccessAlreadyEnabled) ||
           status == cudaErrorUnknown;
}

cudaError_t fail(cudaError_t status)
{
    if (status != cudaSuccess) {
        here().last = status;
        if (sticky(status))
            here().sticky = status;
    }
    return status;
}

/* What EMU_FAULT orders for this call. */
cudaError_t fault(const char *call)
{
    machine &m = here();
    uint64_t turn = ++m.calls[call];
    const char *orders = getenv("EMU_FAULT");
    for (const char *order = orders; order && *order;) {
        char name[64];
        unsigned long long n;
        int code;
        if (sscanf(order, "%63[^:]:%llu:%d", name, &n, &code) == 3 && strcmp(name, call) == 0 && n == turn)
            return (cudaError_t)code;
        order = strchr(order, ',');
        order = order ? order + 1 : nullptr;
    }
    return cudaSuccess;
}

/* How each call begins: what failed before for good, what is ordered to fail. */
#define BEGIN(call)                                   \
    do {                                              \
        if (here().sticky != cudaSuccess)             \
            return fail(here().sticky);               \
        cudaError_t ordered_ = fault(#call);          \
        if (ordered_ != cudaSuccess)                  \
            return fail(ordered_);                    \
    } while (0)

/* Calls that wait or allocate break what is being captured. */
#define NOT_WHILE_CAPTURING()                                 \
    do {                                                      \
        if (here().capture != nullptr) {                      \
            here().capture->broken = true;                    \
            return fail(cudaErrorStreamCaptureUnsupported);   \
        }                                                     \
    } while (0)

CUstream_st *stream_of(cudaStream_t stream)
{
    return stream ? stream : &here().ordinary;
}

/* ---- steps ---- */

bool ready(const CUstream_st *stream)
{
    return !stream->queue.empty() &&
           (stream->queue.front().kind != item::WAIT || stream->queue.front().event->done >= stream->queue.front().version);
}

size_t draw(size_t count)
{
    return (size_t)(here().random() % count);
}

bool do_work(const std::function<bool()> &work)
{
    machine &m = here();
    cudaError_t ordered = fault("step");
    if (ordered != cudaSuccess) {
        fail(ordered);
        return false;
    }
    m.clock += 0.001 + (double)draw(1000) * 1e-6;
    if (work())
        return true;
    fail(cudaErrorLaunchFailure);
    return false;
}

replay start(const std::shared_ptr<const graph_nodes> &graph)
{
    replay replay{graph, {}, {}};
    for (size_t i = 0; i < graph->nodes.size(); i++) {
        replay.waits_for.push_back(graph->nodes[i].after.size());
        if (replay.waits_for[i] == 0)
            replay.can.push_back(i);
    }
    return replay;
}

/* One node whose predecessors are done. */
bool graph_step(replay &replay)
{
    size_t at = draw(replay.can.size()), i = replay.can[at];
    replay.can[at] = replay.can.back();
    replay.can.pop_back();
    for (size_t j : replay.graph->before[i])
        if (--replay.waits_for[j] == 0)
            replay.can.push_back(j);
    return do_work(replay.graph->nodes[i].work);
}

bool step(CUstream_st *stream)
{
    item &first = stream->queue.front();
    bool ok = true;
    switch (first.kind) {
    case item::WORK: {
        std::function<bool()> work = std::move(first.work);
        stream->queue.pop_front();
        return do_work(work);
    }
    case item::RECORD:
        first.event->done = std::max(first.event->done, first.version);
        first.event->at = here().clock;
        break;
    case item::WAIT:
        break;
    case item::GRAPH:
        if (!first.graph.can.empty())
            ok = graph_step(first.graph);
        if (!first.graph.can.empty())
            return ok;
        break;
    }
    stream->queue.pop_front();
    return ok;
}

/* A step of any stream that can make one; false: none can. */
bool any_step()
{
    machine &m = here();
    std::vector<CUstream_st *> can;
    for (CUstream_st *stream : m.streams)
        if (ready(stream))
            can.push_back(stream);
    if (can.empty())
        return false;
    if (!step(can[draw(can.size())]))
        for (CUstream_st *stream : m.streams)
            stream->queue.clear();
    return true;
}

template <class F> cudaError_t until(F done)
{
    machine &m = here();
    while (m.sticky == cudaSuccess && !done())
        if (!any_step()) {
            fprintf(stderr, "fake runtime: a stream waits for an event that nobody will record\n");
            abort();
        }
    return m.sticky;
}

/* ---- what is put into streams ---- */

size_t add_node(CUstream_st *stream, const char *name, std::function<bool()> work)
{
    graph_nodes &graph = *stream->capture->graph;
    graph.nodes.push_back(node{std::move(work), stream->frontier, name});
    size_t index = graph.nodes.size() - 1;
    stream->frontier = {index};
    return index;
}

void put(cudaStream_t to, const char *name, std::function<bool()> work)
{
    CUstream_st *stream = stream_of(to);
    if (stream->capture) {
        add_node(stream, name, std::move(work));
        return;
    }
    item item;
    item.kind = item::WORK;
    item.work = std::move(work);
    stream->queue.push_back(std::move(item));
}

bool is_device(const void *pointer)
{
    void *start;
    size_t bytes;
    return emu_device_find(pointer, &start, &bytes) != nullptr;
}

bool do_copy(void *to, const void *from, size_t bytes, cudaMemcpyKind kind)
{
    bool from_device = kind == cudaMemcpyDeviceToHost || kind == cudaMemcpyDeviceToDevice;
    bool to_device = kind == cudaMemcpyHostToDevice || kind == cudaMemcpyDeviceToDevice;
    if ((from_device && !emu_device_read(from, bytes, "cudaMemcpy")) || (to_device && !emu_device_write(to, bytes, "cudaMemcpy")))
        return false;
    if ((!from_device && is_device(from)) || (!to_device && is_device(to))) {
        emu_report("cudaMemcpy: an address of the device where the direction says host");
        return false;
    }
    memmove(to, from, bytes);
    return true;
}

} // namespace

/* ---- for the emulator and for tests ---- */

void emu_enqueue(cudaStream_t stream, const emu_kernel &kernel)
{
    machine &m = here();
    if (m.sticky != cudaSuccess) {
        fail(m.sticky);
        return;
    }
    cudaError_t ordered = fault("launch");
    if (ordered != cudaSuccess) {
        fail(ordered);
        return;
    }
    m.meter.launches++;
    put(stream, kernel.name, [kernel] { return emu_run(kernel); });
}

void emu_refuse(cudaStream_t, cudaError_t status)
{
    fail(status);
}

extern "C" fake_meter fake_runtime_meter(void)
{
    return here().meter;
}

extern "C" void fake_runtime_reset(void)
{
    machine &m = here();
    for (CUstream_st *stream : m.streams) {
        stream->queue.clear();
        stream->capture = nullptr;
    }
    m.capture = nullptr;
    m.last = m.sticky = cudaSuccess;
    m.calls.clear();
    const char *seed = getenv("EMU_SEED");
    m.random.seed(seed ? strtoull(seed, nullptr, 10) : 1);
    emu_clear_error();
}

bool fake_blas_put(cudaStream_t stream, const char *name, std::function<bool()> work)
{
    machine &m = here();
    if (m.sticky != cudaSuccess)
        return false;
    put(stream, name, std::move(work));
    return true;
}

bool fake_blas_fault(const char *call)
{
    cudaError_t ordered = fault(call);
    if (ordered != cudaSuccess)
        fail(ordered);
    return ordered != cudaSuccess || here().sticky != cudaSuccess;
}

extern "C" {

/* ---- errors ---- */

cudaError_t cudaGetLastError(void)
{
    machine &m = here();
    cudaError_t status = m.sticky != cudaSuccess ? m.sticky : m.last;
    m.last = cudaSuccess;
    return status;
}

cudaError_t cudaPeekAtLastError(void)
{
    return here().sticky != cudaSuccess ? here().sticky : here().last;
}

const char *cudaGetErrorString(cudaError_t status)
{
    switch (status) {
    case cudaSuccess: return "no error";
    case cudaErrorMemoryAllocation: return "out of memory";
    case cudaErrorInvalidValue: return "invalid argument";
    case cudaErrorInvalidConfiguration: return "invalid configuration argument";
    case cudaErrorInsufficientDriver: return "CUDA driver version is insufficient for CUDA runtime version";
    case cudaErrorNoDevice: return "no CUDA-capable device is detected";
    case cudaErrorInvalidDevice: return "invalid device ordinal";
    case cudaErrorECCUncorrectable: return "uncorrectable ECC error encountered";
    case cudaErrorIllegalAddress: return "an illegal memory access was encountered";
    case cudaErrorLaunchFailure: return "unspecified launch failure";
    case cudaErrorNotReady: return "device not ready";
    case cudaErrorStreamCaptureUnsupported: return "operation not permitted when stream is capturing";
    case cudaErrorStreamCaptureInvalidated: return "operation failed due to a previous error during capture";
    case cudaErrorStreamCaptureUnjoined: return "capturing stream has unjoined work";
    case cudaErrorStreamCaptureIsolation: return "dependency created on uncaptured work in another stream";
    default: return "an error of the stand-in runtime";
    }
}

/* ---- devices ---- */

cudaError_t cudaGetDeviceCount(int *count)
{
    BEGIN(cudaGetDeviceCount);
    *count = 0;
    if (!setting("EMU_DRIVER", 1))
        return fail(cudaErrorInsufficientDriver);
    *count = (int)setting("EMU_DEVICES", 1);
    return *count == 0 ? fail(cudaErrorNoDevice) : cudaSuccess;
}

static size_t memory_total()
{
    return (size_t)setting("EMU_MEMORY", (long long)4 << 30);
}

cudaError_t cudaGetDeviceProperties(cudaDeviceProp *properties, int device)
{
    BEGIN(cudaGetDeviceProperties);
    if (device < 0 || device >= setting("EMU_DEVICES", 1))
        return fail(cudaErrorInvalidDevice);
    memset(properties, 0, sizeof(*properties));
    const char *capability = getenv("EMU_CAPABILITY");
    snprintf(properties->name, sizeof(properties->name), "emulated");
    sscanf(capability && capability[0] ? capability : "8.0", "%d.%d", &properties->major, &properties->minor);
    properties->totalGlobalMem = memory_total();
    properties->multiProcessorCount = 4;
    properties->sharedMemPerBlock = 48 << 10;
    properties->sharedMemPerBlockOptin = emu_configured().shared_bytes_max;
    properties->maxThreadsPerBlock = 1024;
    properties->warpSize = 32;
    return cudaSuccess;
}

cudaError_t cudaDeviceGetAttribute(int *value, cudaDeviceAttr attribute, int device)
{
    BEGIN(cudaDeviceGetAttribute);
    cudaDeviceProp properties;
    cudaError_t status = cudaGetDeviceProperties(&properties, device);
    if (status != cudaSuccess)
        return status;
    switch (attribute) {
    case cudaDevAttrMultiProcessorCount: *value = properties.multiProcessorCount; break;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin: *value = (int)properties.sharedMemPerBlockOptin; break;
    case cudaDevAttrComputeCapabilityMajor: *value = properties.major; break;
    case cudaDevAttrComputeCapabilityMinor: *value = properties.minor; break;
    default: return fail(cudaErrorInvalidValue);
    }
    return cudaSuccess;
}

cudaError_t cudaSetDevice(int device)
{
    BEGIN(cudaSetDevice);
    if (device < 0 || device >= setting("EMU_DEVICES", 1))
        return fail(cudaErrorInvalidDevice);
    here().device = device;
    return cudaSuccess;
}

cudaError_t cudaGetDevice(int *device)
{
    *device = here().device;
    return cudaSuccess;
}

cudaError_t cudaDeviceGetStreamPriorityRange(int *least, int *greatest)
{
    BEGIN(cudaDeviceGetStreamPriorityRange);
    *least = 0;
    *greatest = -5;
    return cudaSuccess;
}

/* ---- memory ---- */

cudaError_t cudaMemGetInfo(size_t *free_bytes, size_t *total)
{
    BEGIN(cudaMemGetInfo);
    *total = memory_total();
    *free_bytes = *total - here().meter.device_bytes;
    return cudaSuccess;
}

static char *take_memory(size_t bytes)
{
    return (char *)aligned_alloc(256, (bytes + 255) / 256 * 256);
}

cudaError_t cudaMalloc(void **out, size_t bytes)
{
    BEGIN(cudaMalloc);
    NOT_WHILE_CAPTURING();
    machine &m = here();
    if (bytes > memory_total() - m.meter.device_bytes)
        return fail(cudaErrorMemoryAllocation);
    /* The end of the allocation is the end of the heap's block: what reads beyond it is found by ASan too. */
    void *exact = nullptr;
    if (posix_memalign(&exact, 256, bytes ? bytes : 1) != 0)
        return fail(cudaErrorMemoryAllocation);
    char *memory = (char *)exact;
    emu_register_device(memory, bytes, "cudaMalloc");
    m.memory[memory] = allocation{bytes, true};
    m.meter.device_bytes += bytes;
    m.meter.device_peak = std::max(m.meter.device_peak, m.meter.device_bytes);
    m.meter.allocations++;
    *out = memory;
    return cudaSuccess;
}

cudaError_t cudaFree(void *pointer)
{
    BEGIN(cudaFree);
    NOT_WHILE_CAPTURING();
    machine &m = here();
    if (pointer == nullptr)
        return cudaSuccess;
    auto at = m.memory.find((char *)pointer);
    if (at == m.memory.end() || !at->second.device)
        return fail(cudaErrorInvalidValue);
    cudaError_t status = until([] { /* it waits for the whole device */
        for (CUstream_st *stream : here().streams)
            if (!stream->queue.empty())
                return false;
        return true;
    });
    m.meter.device_bytes -= at->second.bytes;
    emu_unregister_device(pointer);
    m.memory.erase(at);
    free(pointer);
    return status;
}

cudaError_t cudaHostAlloc(void **out, size_t bytes, unsigned)
{
    BEGIN(cudaHostAlloc);
    NOT_WHILE_CAPTURING();
    char *memory = take_memory(bytes ? bytes : 1);
    if (memory == nullptr)
        return fail(cudaErrorMemoryAllocation);
    here().memory[memory] = allocation{bytes, false};
    here().meter.host_bytes += bytes;
    *out = memory;
    return cudaSuccess;
}

cudaError_t cudaFreeHost(void *pointer)
{
    BEGIN(cudaFreeHost);
    NOT_WHILE_CAPTURING();
    machine &m = here();
    auto at = m.memory.find((char *)pointer);
    if (at == m.memory.end() || at->second.device)
        return fail(cudaErrorInvalidValue);
    m.meter.host_bytes -= at->second.bytes;
    m.memory.erase(at);
    free(pointer);
    return cudaSuccess;
}

/* Page-locked, and wholly so. */
static bool is_locked(const void *memory, size_t bytes)
{
    auto next = here().memory.upper_bound((char *)(uintptr_t)memory);
    if (next == here().memory.begin())
        return false;
    auto own = std::prev(next);
    return !own->second.device && (const char *)memory + bytes <= own->first + own->second.bytes;
}

cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t bytes, cudaMemcpyKind kind, cudaStream_t stream)
{
    BEGIN(cudaMemcpyAsync);
    /* A graph copies from and to where the host's memory was when it was captured: it must be memory that is kept for that. */
    const void *host = kind == cudaMemcpyHostToDevice ? from : kind == cudaMemcpyDeviceToHost ? to : nullptr;
    if (stream_of(stream)->capture && host != nullptr && !is_locked(host, bytes)) {
        stream_of(stream)->capture->broken = true;
        emu_report("cudaMemcpyAsync: memory of the host that is not page-locked in a graph");
        return fail(cudaErrorStreamCaptureUnsupported);
    }
    put(stream, "copy", [=] { return do_copy(to, from, bytes, kind); });
    return cudaSuccess;
}

cudaError_t cudaMemcpy(void *to, const void *from, size_t bytes, cudaMemcpyKind kind)
{
    BEGIN(cudaMemcpy);
    NOT_WHILE_CAPTURING();
    put(nullptr, "copy", [=] { return do_copy(to, from, bytes, kind); });
    return until([] { return here().ordinary.queue.empty(); });
}

cudaError_t cudaMemsetAsync(void *to, int value, size_t bytes, cudaStream_t stream)
{
    BEGIN(cudaMemsetAsync);
    put(stream, "memset", [=] {
        if (!emu_device_write(to, bytes, "cudaMemsetAsync"))
            return false;
        memset(to, value, bytes);
        return true;
    });
    return cudaSuccess;
}

cudaError_t cudaMemset2DAsync(void *to, size_t pitch, int value, size_t width, size_t height, cudaStream_t stream)
{
    BEGIN(cudaMemset2DAsync);
    if (width > pitch)
        return fail(cudaErrorInvalidValue);
    put(stream, "memset", [=] {
        for (size_t i = 0; i < height; i++) {
            if (!emu_device_write((char *)to + i * pitch, width, "cudaMemset2DAsync"))
                return false;
            memset((char *)to + i * pitch, value, width);
        }
        return true;
    });
    return cudaSuccess;
}

/* ---- streams and events ---- */

cudaError_t cudaStreamCreateWithPriority(cudaStream_t *out, unsigned, int)
{
    BEGIN(cudaStreamCreateWithPriority);
    *out = new CUstream_st;
    here().streams.push_back(*out);
    return cudaSuccess;
}

cudaError_t cudaStreamDestroy(cudaStream_t stream)
{
    BEGIN(cudaStreamDestroy);
    cudaError_t status = until([=] { return stream->queue.empty(); });
    std::vector<CUstream_st *> &all = here().streams;
    all.erase(std::find(all.begin(), all.end(), stream));
    delete stream;
    return status;
}

cudaError_t cudaStreamSynchronize(cudaStream_t stream)
{
    BEGIN(cudaStreamSynchronize);
    NOT_WHILE_CAPTURING();
    return until([=] { return stream_of(stream)->queue.empty(); });
}

cudaError_t cudaDeviceSynchronize(void)
{
    BEGIN(cudaDeviceSynchronize);
    NOT_WHILE_CAPTURING();
    return until([] {
        for (CUstream_st *stream : here().streams)
            if (!stream->queue.empty())
                return false;
        return true;
    });
}

cudaError_t cudaStreamQuery(cudaStream_t stream)
{
    BEGIN(cudaStreamQuery);
    NOT_WHILE_CAPTURING();
    any_step();
    if (here().sticky != cudaSuccess)
        return fail(here().sticky);
    return stream_of(stream)->queue.empty() ? cudaSuccess : fail(cudaErrorNotReady);
}

cudaError_t cudaEventCreateWithFlags(cudaEvent_t *out, unsigned flags)
{
    BEGIN(cudaEventCreateWithFlags);
    *out = new CUevent_st;
    (*out)->timing = (flags & cudaEventDisableTiming) == 0;
    return cudaSuccess;
}

cudaError_t cudaEventCreate(cudaEvent_t *out)
{
    return cudaEventCreateWithFlags(out, cudaEventDefault);
}

cudaError_t cudaEventDestroy(cudaEvent_t event)
{
    BEGIN(cudaEventDestroy);
    cudaError_t status = until([=] { return event->done >= event->recorded; });
    delete event;
    return status;
}

cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t to)
{
    BEGIN(cudaEventRecord);
    CUstream_st *stream = stream_of(to);
    event->capture = stream->capture ? stream->capture->number : 0;
    if (stream->capture) {
        event->frontier = stream->frontier;
        return cudaSuccess;
    }
    item item;
    item.kind = item::RECORD;
    item.event = event;
    item.version = ++event->recorded;
    stream->queue.push_back(std::move(item));
    return cudaSuccess;
}

cudaError_t cudaEventQuery(cudaEvent_t event)
{
    BEGIN(cudaEventQuery);
    NOT_WHILE_CAPTURING();
    any_step();
    if (here().sticky != cudaSuccess)
        return fail(here().sticky);
    return event->done >= event->recorded ? cudaSuccess : fail(cudaErrorNotReady);
}

cudaError_t cudaEventSynchronize(cudaEvent_t event)
{
    BEGIN(cudaEventSynchronize);
    NOT_WHILE_CAPTURING();
    return until([=] { return event->done >= event->recorded; });
}

cudaError_t cudaEventElapsedTime(float *ms, cudaEvent_t begin, cudaEvent_t end)
{
    BEGIN(cudaEventElapsedTime);
    if (!begin->timing || !end->timing || begin->recorded == 0 || end->recorded == 0)
        return fail(cudaErrorInvalidResourceHandle);
    if (begin->done < begin->recorded || end->done < end->recorded)
        return fail(cudaErrorNotReady);
    *ms = (float)((end->at - begin->at) * 1e3);
    return cudaSuccess;
}

cudaError_t cudaStreamWaitEvent(cudaStream_t to, cudaEvent_t event, unsigned)
{
    BEGIN(cudaStreamWaitEvent);
    CUstream_st *stream = stream_of(to);
    CUgraph_st *capture = here().capture;
    if (capture != nullptr && event->capture == capture->number) { /* the stream joins what is being captured */
        if (stream->capture == nullptr) {
            if (!stream->queue.empty()) {
                capture->broken = true;
                return fail(cudaErrorStreamCaptureIsolation);
            }
            stream->capture = capture;
            stream->frontier.clear();
            capture->joined.insert(stream);
        }
        stream->frontier.insert(event->frontier.begin(), event->frontier.end());
        return cudaSuccess;
    }
    if (stream->capture) {
        stream->capture->broken = true;
        return fail(cudaErrorStreamCaptureIsolation);
    }
    if (event->recorded == 0)
        return cudaSuccess;
    item item;
    item.kind = item::WAIT;
    item.event = event;
    item.version = event->recorded;
    stream->queue.push_back(std::move(item));
    return cudaSuccess;
}

cudaError_t cudaLaunchHostFunc(cudaStream_t stream, cudaHostFn_t function, void *data)
{
    BEGIN(cudaLaunchHostFunc);
    put(stream, "host", [=] {
        function(data);
        return true;
    });
    return cudaSuccess;
}

/* ---- graphs ---- */

cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode)
{
    BEGIN(cudaStreamBeginCapture);
    if (stream == nullptr || stream->capture != nullptr || here().capture != nullptr)
        return fail(cudaErrorIllegalState);
    CUgraph_st *graph = new CUgraph_st;
    graph->number = ++here().captures;
    graph->origin = stream;
    graph->joined.insert(stream);
    stream->capture = graph;
    stream->frontier.clear();
    here().capture = graph;
    return cudaSuccess;
}

/* Whether a node comes, in some steps, before the frontier. */
static bool reached(const graph_nodes &graph, const std::set<size_t> &frontier, size_t wanted)
{
    std::vector<size_t> todo(frontier.begin(), frontier.end());
    std::set<size_t> seen;
    while (!todo.empty()) {
        size_t i = todo.back();
        todo.pop_back();
        if (i == wanted)
            return true;
        if (seen.insert(i).second)
            todo.insert(todo.end(), graph.nodes[i].after.begin(), graph.nodes[i].after.end());
    }
    return false;
}

cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t *out)
{
    *out = nullptr;
    CUgraph_st *graph = stream->capture;
    if (graph == nullptr || graph->origin != stream)
        return fail(cudaErrorIllegalState);
    bool unjoined = false;
    for (CUstream_st *other : graph->joined) {
        for (size_t i : other->frontier)
            unjoined |= !reached(*graph->graph, stream->frontier, i);
        other->capture = nullptr;
    }
    here().capture = nullptr;
    cudaError_t status = here().sticky != cudaSuccess ? here().sticky : fault("cudaStreamEndCapture");
    if (status == cudaSuccess && graph->broken)
        status = cudaErrorStreamCaptureInvalidated;
    if (status == cudaSuccess && unjoined)
        status = cudaErrorStreamCaptureUnjoined;
    if (status != cudaSuccess) {
        delete graph;
        return fail(status);
    }
    *out = graph;
    return cudaSuccess;
}

cudaError_t cudaStreamIsCapturing(cudaStream_t stream, cudaStreamCaptureStatus *status)
{
    *status = stream_of(stream)->capture ? cudaStreamCaptureStatusActive : cudaStreamCaptureStatusNone;
    return cudaSuccess;
}

cudaError_t cudaGraphInstantiate(cudaGraphExec_t *out, cudaGraph_t graph, unsigned long long)
{
    BEGIN(cudaGraphInstantiate);
    graph_nodes &nodes = *graph->graph;
    nodes.before.assign(nodes.nodes.size(), {});
    for (size_t i = 0; i < nodes.nodes.size(); i++)
        for (size_t j : nodes.nodes[i].after)
            nodes.before[j].push_back(i);
    *out = new CUgraphExec_st{graph->graph};
    here().meter.graphs++;
    return cudaSuccess;
}

cudaError_t cudaGraphDestroy(cudaGraph_t graph)
{
    delete graph;
    return cudaSuccess;
}

cudaError_t cudaGraphExecDestroy(cudaGraphExec_t exec)
{
    delete exec;
    return cudaSuccess;
}

cudaError_t cudaGraphGetNodes(cudaGraph_t graph, cudaGraphNode_t *, size_t *count)
{
    *count = graph->graph->nodes.size();
    return cudaSuccess;
}

cudaError_t cudaGraphLaunch(cudaGraphExec_t exec, cudaStream_t stream)
{
    BEGIN(cudaGraphLaunch);
    if (stream_of(stream)->capture)
        return fail(cudaErrorStreamCaptureUnsupported);
    item item;
    item.kind = item::GRAPH;
    item.graph = start(exec->graph);
    stream_of(stream)->queue.push_back(std::move(item));
    here().meter.graph_launches++;
    return cudaSuccess;
}

/* ---- kernels ---- */

cudaError_t cudaFuncSetAttribute(const void *function, cudaFuncAttribute attribute, int value)
{
    BEGIN(cudaFuncSetAttribute);
    if (attribute != cudaFuncAttributeMaxDynamicSharedMemorySize)
        return cudaSuccess;
    return emu_allow_dynamic(function, (size_t)value) ? cudaSuccess : fail(cudaErrorInvalidValue);
}

} // extern "C"
