/* Streams, events, copies, graphs, devices and errors of the fake runtime. */
#include "test_emu.h"

#include <algorithm>
#include <cstring>
#include <set>
#include <string>
#include <thread>

namespace {

__global__ void add_to(gptr<int> v, int amount) {
    v[threadIdx.x] += amount;
}
__global__ void twice(gptr<int> v) {
    v[threadIdx.x] *= 2;
}
__global__ void copy_ints(gptr<int> to, gptr<const int> from) {
    to[threadIdx.x] = from[threadIdx.x];
}
__global__ void out_of_bounds(gptr<int> v) {
    v[1 << 20] = 1;
}

struct two_streams {
    cudaStream_t a, b;
    cudaEvent_t event;
    two_streams() {
        cudaStreamCreateWithFlags(&a, cudaStreamNonBlocking);
        cudaStreamCreateWithFlags(&b, cudaStreamNonBlocking);
        cudaEventCreateWithFlags(&event, cudaEventDisableTiming);
    }
    ~two_streams() {
        cudaEventDestroy(event);
        cudaStreamDestroy(a);
        cudaStreamDestroy(b);
    }
};

/* (0 + 3) * 2 when stream b waits for stream a. */
int across_streams(bool wait, uint64_t seed) {
    emu_set_seed(seed);
    two_streams s;
    test::buffer<int> v(std::vector<int>{0});
    launch(add_to, 1, 1, 0, s.a, v.get(), 3);
    cudaEventRecord(s.event, s.a);
    if (wait)
        cudaStreamWaitEvent(s.b, s.event, 0);
    launch(twice, 1, 1, 0, s.b, v.get());
    CHECK(cudaStreamSynchronize(s.b) == cudaSuccess);
    CHECK(cudaStreamSynchronize(s.a) == cudaSuccess);
    return v.host()[0];
}

} // namespace

TEST(events_order_streams) {
    std::set<int> ordered, unordered;
    for (uint64_t seed = 1; seed <= 30; seed++) {
        ordered.insert(across_streams(true, seed));
        unordered.insert(across_streams(false, seed));
    }
    CHECK(ordered == std::set<int>{6});
    CHECK((unordered == std::set<int>{3, 6})); /* a missing event shows */
}

TEST(nothing_runs_before_a_wait) {
    two_streams s;
    int *host;
    cudaMallocHost(&host, 4);
    test::buffer<int> v(std::vector<int>{5});
    *host = 1;
    cudaMemcpyAsync(v.get(), host, 4, cudaMemcpyHostToDevice, s.a);
    *host = 2; /* the copy reads its source when it runs */
    CHECK(cudaStreamSynchronize(s.a) == cudaSuccess);
    launch(add_to, 1, 1, 0, s.a, v.get(), 10);
    cudaMemcpyAsync(host, v.get(), 4, cudaMemcpyDeviceToHost, s.a);
    CHECK(static_cast<unsigned int>(*host) == 0xa5a5a5a5u);
    CHECK(cudaStreamSynchronize(s.a) == cudaSuccess);
    CHECK(*host == 12);
    cudaFreeHost(host);
}

TEST(queries_make_progress) {
    two_streams s;
    test::buffer<int> v(std::vector<int>{0});
    CHECK(cudaStreamQuery(s.a) == cudaSuccess);
    for (int i = 0; i < 8; i++)
        launch(add_to, 1, 1, 0, s.a, v.get(), 1);
    cudaEventRecord(s.event, s.a);
    int asked = 0;
    while (cudaEventQuery(s.event) == cudaErrorNotReady)
        asked++;
    CHECK(asked > 0 && asked <= 16);
    CHECK(cudaStreamQuery(s.a) == cudaSuccess);
    CHECK(cudaPeekAtLastError() == cudaSuccess);
    CHECK(v.host()[0] == 8);
}

TEST(legacy_stream_waits_for_blocking_streams_only) {
    std::set<int> blocking, other;
    for (uint64_t seed = 1; seed <= 30; seed++) {
        emu_set_seed(seed);
        for (unsigned int flags : {cudaStreamDefault, cudaStreamNonBlocking}) {
            cudaStream_t s;
            cudaStreamCreateWithFlags(&s, flags);
            test::buffer<int> v(std::vector<int>{1});
            launch(add_to, 1, 1, 0, s, v.get(), 1);
            (flags == cudaStreamDefault ? blocking : other).insert(v.host()[0]);
            cudaStreamDestroy(s);
        }
    }
    CHECK(blocking == std::set<int>{2});
    CHECK((other == std::set<int>{1, 2}));
}

namespace {
void add_one(void *user) {
    ++*static_cast<int *>(user);
}
} // namespace

TEST(host_functions_run_in_order) {
    two_streams s;
    int calls = 0;
    cudaLaunchHostFunc(s.a, add_one, &calls);
    CHECK(calls == 0);
    cudaEventRecord(s.event, s.a);
    CHECK(cudaEventSynchronize(s.event) == cudaSuccess);
    CHECK(calls == 1);
}

TEST(elapsed_time) {
    cudaEvent_t from, to;
    cudaEventCreate(&from);
    cudaEventCreate(&to);
    float ms = -1;
    CHECK(cudaEventElapsedTime(&ms, from, to) == cudaErrorInvalidResourceHandle);
    cudaGetLastError();
    cudaEventRecord(from, nullptr);
    cudaEventRecord(to, nullptr);
    CHECK(cudaEventElapsedTime(&ms, from, to) == cudaErrorNotReady);
    cudaGetLastError();
    CHECK(cudaEventSynchronize(to) == cudaSuccess);
    CHECK(cudaEventElapsedTime(&ms, from, to) == cudaSuccess);
    CHECK(ms >= 0 && ms < 1000);
    cudaEventDestroy(from);
    cudaEventDestroy(to);
}

TEST(copies_of_bad_ranges) {
    test::buffer<int> v(std::vector<int>(4, 1));
    std::vector<int> host(8);
    REPORTED("copy", [&] {
        CHECK(cudaMemcpy(host.data(), v.get(), 32, cudaMemcpyDeviceToHost) ==
              cudaErrorIllegalAddress);
    });
    REPORTED("copy of kind", [&] {
        CHECK(cudaMemcpy(v.get(), host.data(), 16, cudaMemcpyDeviceToDevice) ==
              cudaErrorInvalidValue);
    });
    REPORTED("memset", [&] {
        cudaMemset(v.get(), 0, 17);
        CHECK(cudaDeviceSynchronize() == cudaErrorIllegalAddress);
    });
    test::buffer<int> fresh(1);
    CHECK(static_cast<unsigned int>(fresh.host()[0]) == 0xa5a5a5a5u);
}

TEST(a_failed_device_stays_failed) {
    test::buffer<int> v(std::vector<int>{0});
    REPORTED("out of bounds", [&] {
        CHECK(launch(out_of_bounds, 1, 1, 0, nullptr, v.get()) == cudaSuccess);
        CHECK(cudaDeviceSynchronize() == cudaErrorLaunchFailure);
        CHECK(cudaGetLastError() == cudaErrorLaunchFailure);
        CHECK(cudaGetLastError() == cudaErrorLaunchFailure);
        void *p;
        CHECK(cudaMalloc(&p, 4) == cudaErrorLaunchFailure);
        CHECK(launch(add_to, 1, 1, 0, nullptr, v.get(), 1) == cudaErrorLaunchFailure);
        CHECK(strstr(emu_last_report(), "kernel out_of_bounds"));
        CHECK(strstr(emu_last_report(), "seed"));
    });
    CHECK(cudaGetLastError() == cudaSuccess);
    CHECK(!strcmp(cudaGetErrorString(cudaErrorLaunchFailure), "unspecified launch failure"));
    CHECK(!strcmp(cudaGetErrorName(cudaErrorNotReady), "cudaErrorNotReady"));
}

namespace {

/* Two branches between a fork and a join: b = 2 * a, c = a + 5, a = b; then c is added. */
cudaGraphExec_t captured(two_streams &s, int *a, int *b, int *c, bool join) {
    cudaGraph_t graph;
    cudaGraphExec_t exec = nullptr;
    CHECK(cudaStreamBeginCapture(s.a, cudaStreamCaptureModeThreadLocal) == cudaSuccess);
    launch(copy_ints, 1, 4, 0, s.a, c, a);
    cudaEventRecord(s.event, s.a);
    cudaStreamWaitEvent(s.b, s.event, 0);
    launch(add_to, 1, 4, 0, s.b, c, 5);
    launch(copy_ints, 1, 4, 0, s.a, b, a);
    launch(twice, 1, 4, 0, s.a, b);
    cudaStreamCaptureStatus status;
    CHECK(cudaStreamIsCapturing(s.b, &status) == cudaSuccess);
    CHECK(status == cudaStreamCaptureStatusActive);
    if (join) {
        cudaEventRecord(s.event, s.b);
        cudaStreamWaitEvent(s.a, s.event, 0);
    }
    launch(copy_ints, 1, 4, 0, s.a, a, c);
    cudaError_t error = cudaStreamEndCapture(s.a, &graph);
    CHECK(error == (join ? cudaSuccess : cudaErrorStreamCaptureUnjoined));
    CHECK(cudaStreamIsCapturing(s.b, &status) == cudaSuccess);
    CHECK(status == cudaStreamCaptureStatusNone);
    if (graph) {
        size_t nodes;
        CHECK(cudaGraphGetNodes(graph, nullptr, &nodes) == cudaSuccess && nodes == 5);
        CHECK(emu_captured_nodes() == 5);
        CHECK(cudaGraphInstantiate(&exec, graph, 0) == cudaSuccess);
        CHECK(cudaGraphDestroy(graph) == cudaSuccess);
    }
    return exec;
}

} // namespace

TEST(graphs_are_captured_and_replayed) {
    CLEAN([] {
        two_streams s;
        test::buffer<int> a(std::vector<int>{1, 2, 3, 4}), b(4), c(4);
        cudaGraphExec_t exec = captured(s, a.get(), b.get(), c.get(), true);
        CHECK((a.host() == std::vector<int>{1, 2, 3, 4})); /* nothing ran */
        for (int i = 0; i < 3; i++)
            CHECK(cudaGraphLaunch(exec, s.a) == cudaSuccess);
        CHECK(cudaStreamSynchronize(s.a) == cudaSuccess);
        CHECK((a.host() == std::vector<int>{16, 17, 18, 19}));
        CHECK((b.host() == std::vector<int>{22, 24, 26, 28}));
        CHECK(cudaGraphExecDestroy(exec) == cudaSuccess);
    });
    two_streams s;
    test::buffer<int> a(std::vector<int>{1, 2, 3, 4}), b(4), c(4);
    CHECK(!captured(s, a.get(), b.get(), c.get(), false));
    CHECK(cudaGetLastError() == cudaErrorStreamCaptureUnjoined);
}

TEST(calls_that_end_a_capture) {
    two_streams s;
    test::buffer<int> v(std::vector<int>{0});
    void *p;
    int host;
    const std::function<cudaError_t()> calls[] = {
        [&] { return cudaMalloc(&p, 16); },
        [&] { return cudaFree(v.get()); },
        [&] { return cudaStreamSynchronize(s.a); },
        [&] { return cudaStreamQuery(s.a); },
        [&] { return cudaDeviceSynchronize(); },
        [&] { return cudaMemcpy(&host, v.get(), 4, cudaMemcpyDeviceToHost); },
    };
    for (const auto &call : calls) {
        cudaGraph_t graph;
        CHECK(cudaStreamBeginCapture(s.a, cudaStreamCaptureModeThreadLocal) == cudaSuccess);
        launch(add_to, 1, 1, 0, s.a, v.get(), 1);
        CHECK(call() == cudaErrorStreamCaptureUnsupported);
        CHECK(cudaStreamEndCapture(s.a, &graph) == cudaErrorStreamCaptureInvalidated);
        CHECK(!graph);
    }
    /* Another thread may do what it likes. */
    cudaGraph_t graph;
    CHECK(cudaStreamBeginCapture(s.a, cudaStreamCaptureModeThreadLocal) == cudaSuccess);
    std::thread other([&] {
        CHECK(cudaMalloc(&p, 16) == cudaSuccess);
        CHECK(cudaFree(p) == cudaSuccess);
    });
    other.join();
    CHECK(cudaStreamEndCapture(s.a, &graph) == cudaSuccess);
    CHECK(cudaGraphDestroy(graph) == cudaSuccess);
    /* An event from outside, or a capture's event outside. */
    cudaEventRecord(s.event, s.b);
    cudaStreamBeginCapture(s.a, cudaStreamCaptureModeThreadLocal);
    CHECK(cudaStreamWaitEvent(s.a, s.event, 0) == cudaErrorStreamCaptureIsolation);
    cudaEventRecord(s.event, s.a);
    CHECK(cudaEventQuery(s.event) == cudaErrorCapturedEvent);
    cudaStreamEndCapture(s.a, &graph);
    cudaGetLastError();
    CHECK(v.host()[0] == 0);
}

TEST(captured_arguments_are_values) {
    two_streams s;
    test::buffer<int> v(std::vector<int>{0});
    cudaGraph_t graph;
    cudaGraphExec_t exec;
    int amount = 2;
    cudaStreamBeginCapture(s.a, cudaStreamCaptureModeThreadLocal);
    launch(add_to, 1, 1, 0, s.a, v.get(), amount);
    amount = 100;
    cudaStreamEndCapture(s.a, &graph);
    cudaGraphInstantiate(&exec, graph, 0);
    cudaGraphLaunch(exec, s.a);
    cudaGraphLaunch(exec, s.a);
    cudaStreamSynchronize(s.a);
    CHECK(v.host()[0] == 4);
    cudaGraphExecDestroy(exec);
    cudaGraphDestroy(graph);
}

namespace {

/* Two ranks that wait for each other, as a collective does. */
struct meeting {
    int arrived = 0, left = 0, destroyed = 0;
};
struct guest {
    meeting *at;
    bool here;
};

bool meet(void *ctx) {
    guest *g = static_cast<guest *>(ctx);
    meeting &at = *g->at;
    if (!g->here) {
        if (at.left)
            return false; /* the meeting before is not over */
        g->here = true;
        at.arrived++;
    }
    if (at.arrived < 2)
        return false;
    g->here = false;
    if (++at.left == 2)
        at.arrived = at.left = 0;
    return true;
}

void guest_gone(void *ctx) {
    guest *g = static_cast<guest *>(ctx);
    g->at->destroyed++;
    delete g;
}

void rank(meeting *at, bool with_graph) {
    cudaStream_t s;
    cudaGraph_t graph;
    cudaGraphExec_t exec;
    cudaStreamCreateWithFlags(&s, cudaStreamNonBlocking);
    test::buffer<int> v(std::vector<int>{0});
    if (with_graph) {
        cudaStreamBeginCapture(s, cudaStreamCaptureModeThreadLocal);
        launch(add_to, 1, 1, 0, s, v.get(), 1);
        emu_stream_enqueue_poll(s, meet, guest_gone, new guest{at, false});
        launch(add_to, 1, 1, 0, s, v.get(), 10);
        cudaStreamEndCapture(s, &graph);
        cudaGraphInstantiate(&exec, graph, 0);
        cudaGraphDestroy(graph);
        for (int i = 0; i < 5; i++)
            cudaGraphLaunch(exec, s);
        CHECK(cudaStreamSynchronize(s) == cudaSuccess);
        cudaGraphExecDestroy(exec);
        CHECK(v.host()[0] == 55);
    } else {
        for (int i = 0; i < 5; i++) {
            emu_stream_enqueue_poll(s, meet, guest_gone, new guest{at, false});
            launch(add_to, 1, 1, 0, s, v.get(), 1);
        }
        CHECK(cudaStreamSynchronize(s) == cudaSuccess);
        CHECK(v.host()[0] == 5);
    }
    cudaStreamDestroy(s);
}

} // namespace

TEST(polled_operations_of_two_ranks) {
    for (bool with_graph : {false, true}) {
        meeting at;
        std::thread a([&] { rank(&at, with_graph); }), b([&] { rank(&at, with_graph); });
        a.join();
        b.join();
        CHECK(at.arrived == 0 && at.left == 0);
        CHECK(at.destroyed == (with_graph ? 2 : 10));
    }
}

TEST(many_host_threads) {
    std::vector<std::thread> ranks;
    for (int r = 0; r < 4; r++)
        ranks.emplace_back([r] {
            cudaSetDevice(0);
            two_streams s;
            test::buffer<int> v(std::vector<int>(32, r));
            for (int i = 0; i < 20; i++)
                launch(add_to, 1, 32, 0, s.a, v.get(), 1);
            CHECK(cudaStreamSynchronize(s.a) == cudaSuccess);
            CHECK(v.host()[31] == r + 20);
        });
    for (std::thread &t : ranks)
        t.join();
}

TEST(device_properties) {
    int count = 0, id = -1, value = 0;
    CHECK(cudaGetDeviceCount(&count) == cudaSuccess && count >= 1);
    CHECK(cudaSetDevice(count) == cudaErrorInvalidDevice);
    CHECK(cudaGetLastError() == cudaErrorInvalidDevice);
    CHECK(cudaGetDevice(&id) == cudaSuccess && id == 0);
    cudaDeviceProp p;
    CHECK(cudaGetDeviceProperties(&p, 0) == cudaSuccess);
    CHECK(p.major >= 8 && p.multiProcessorCount > 0 && p.sharedMemPerBlockOptin == 227 * 1024);
    CHECK(cudaDeviceGetAttribute(&value, cudaDevAttrMultiProcessorCount, 0) == cudaSuccess);
    CHECK(value == p.multiProcessorCount);
    std::set<std::string> uuids;
    for (int i = 0; i < count; i++) {
        cudaGetDeviceProperties(&p, i);
        uuids.insert(std::string(p.uuid.bytes, sizeof p.uuid.bytes));
    }
    CHECK(static_cast<int>(uuids.size()) == count);
    CHECK(cudaDriverGetVersion(&value) == cudaSuccess && value >= 12000);
    int blocks = 0;
    CHECK(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, add_to, 256, 100 * 1024) ==
          cudaSuccess);
    CHECK(blocks == 2);
}

/* Run with QEP_EMU_DEVICES=2 or more as well. */
TEST(devices_are_apart) {
    int count = 0;
    cudaGetDeviceCount(&count);
    if (count < 2)
        return;
    test::buffer<int> first(std::vector<int>{3});
    size_t free_here, free_there, total;
    cudaMemGetInfo(&free_here, &total);
    cudaSetDevice(1);
    cudaMemGetInfo(&free_there, &total);
    CHECK(free_there == total && free_here < total);
    test::buffer<int> second(std::vector<int>{0});
    REPORTED("another device",
             [&] { RUN(copy_ints, 1, 1, 0, nullptr, second.get(), first.get()); });
    CHECK(cudaMemcpy(second.get(), first.get(), 4, cudaMemcpyDefault) == cudaSuccess);
    CHECK(second.host()[0] == 3);

    /* An event orders streams of two devices; an error stays with its device. */
    cudaStream_t here, there;
    cudaEvent_t event;
    cudaStreamCreateWithFlags(&there, cudaStreamNonBlocking);
    cudaEventCreateWithFlags(&event, cudaEventDisableTiming);
    launch(add_to, 1, 1, 0, there, second.get(), 4);
    cudaEventRecord(event, there);
    cudaSetDevice(0);
    cudaStreamCreateWithFlags(&here, cudaStreamNonBlocking);
    cudaStreamWaitEvent(here, event, 0);
    cudaMemcpyAsync(first.get(), second.get(), 4, cudaMemcpyDeviceToDevice, here);
    CHECK(cudaStreamSynchronize(here) == cudaSuccess);
    CHECK(first.host()[0] == 7);
    REPORTED("out of bounds", [&] {
        CHECK(RUN(out_of_bounds, 1, 1, 0, nullptr, first.get()) == cudaErrorLaunchFailure);
        cudaSetDevice(1);
        CHECK(cudaDeviceSynchronize() == cudaSuccess);
        cudaSetDevice(0);
    });
    cudaStreamDestroy(here);
    cudaStreamDestroy(there);
    cudaEventDestroy(event);
}
