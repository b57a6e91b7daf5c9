#include "camrt/thread_pool.hpp"

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <exception>
#include <mutex>
#include <thread>
#include <vector>

#if defined(__unix__) || defined(__APPLE__)
#include <pthread.h>
#define CAMRT_HAS_FORK 1
#endif

namespace camrt {
namespace {

// Below this, waiting for a worker that shares its core with somebody else costs more than it saves.
constexpr std::size_t kSmallestSharedCost = 1'000'000;

// Counts the forks between the process that loaded this library and this process: threads do not survive a fork.
std::atomic<unsigned> fork_generation{0};

unsigned current_generation() {
#ifdef CAMRT_HAS_FORK
    static const int registered =
        pthread_atfork(nullptr, nullptr, [] { fork_generation.fetch_add(1, std::memory_order_relaxed); });
    static_cast<void>(registered);
#endif
    return fork_generation.load(std::memory_order_relaxed);
}

struct Job {
    const void* task;
    void (*call)(const void*, std::size_t);
    std::size_t count;
    std::atomic<std::size_t> next{0};
    std::mutex error_mutex{};
    std::exception_ptr error{};

    void work() {
        for (std::size_t index = next.fetch_add(1); index < count; index = next.fetch_add(1)) {
            try {
                call(task, index);
            } catch (...) {
                const std::lock_guard lock(error_mutex);
                if (!error) {
                    error = std::current_exception();
                }
                next.store(count);
            }
        }
    }
};

}  // namespace

struct ThreadPool::Workers {
    explicit Workers(std::size_t count, unsigned created_in) : generation(created_in) {
        threads.reserve(count);
        for (std::size_t index = 0; index < count; ++index) {
            threads.emplace_back([this](const std::stop_token& stop) { serve(stop); });
        }
    }

    void serve(const std::stop_token& stop) {
        std::size_t seen = 0;
        std::unique_lock lock(mutex);
        while (wake.wait(lock, stop, [&] { return posted != seen; })) {
            seen = posted;
            Job* const current = job;
            if (current == nullptr) {
                continue;
            }
            ++active;
            lock.unlock();
            current->work();
            lock.lock();
            if (--active == 0) {
                idle.notify_one();
            }
        }
    }

    void run(Job& shared) {
        {
            const std::lock_guard lock(mutex);
            job = &shared;
            ++posted;
        }
        wake.notify_all();
        shared.work();
        std::unique_lock lock(mutex);
        job = nullptr;
        idle.wait(lock, [&] { return active == 0; });
    }

    const unsigned generation;
    std::atomic_flag busy;
    std::mutex mutex;
    std::condition_variable_any wake;
    std::condition_variable idle;
    Job* job = nullptr;
    std::size_t posted = 0;
    std::size_t active = 0;
    std::vector<std::jthread> threads;  // last, so that it is joined before the rest is destroyed
};

ThreadPool::ThreadPool(std::size_t threads)
    : threads_(threads != 0 ? threads : std::max<std::size_t>(1, std::thread::hardware_concurrency())) {
    current_generation();
}

ThreadPool::~ThreadPool() {
    Workers* const owned = workers_.load();
    // The threads of a parent process cannot be joined: their bookkeeping is left behind.
    if (owned != nullptr && owned->generation == current_generation()) {
        delete owned;
    }
}

ThreadPool::Workers* ThreadPool::workers() {
    const unsigned generation = current_generation();
    Workers* existing = workers_.load(std::memory_order_acquire);
    if (existing != nullptr && existing->generation == generation) {
        return existing;
    }
    auto fresh = std::make_unique<Workers>(threads_ - 1, generation);
    if (workers_.compare_exchange_strong(existing, fresh.get(), std::memory_order_acq_rel)) {
        return fresh.release();
    }
    return existing;
}

void ThreadPool::run_erased(std::size_t count, std::size_t cost, const void* task, Call call) {
    Job job{.task = task, .call = call, .count = count};
    if (threads_ > 1 && count > 1 && cost >= kSmallestSharedCost) {
        Workers* const shared = workers();
        // Not a mutex: a task that calls run() again may sit on the thread that took the flag.
        if (!shared->busy.test_and_set(std::memory_order_acquire)) {
            shared->run(job);
            shared->busy.clear(std::memory_order_release);
        } else {
            job.work();
        }
    } else {
        job.work();
    }
    if (job.error) {
        std::rethrow_exception(job.error);
    }
}

}  // namespace camrt
