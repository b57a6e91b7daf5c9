// A small persistent thread pool. Results must not depend on it: it only decides who runs which task.
#pragma once

#include <atomic>
#include <cstddef>
#include <memory>

namespace camrt {

class ThreadPool {
 public:
    // threads: how many run at once, the caller included; 0 = one a core. Threads start on the first use.
    explicit ThreadPool(std::size_t threads);
    ~ThreadPool();
    ThreadPool(const ThreadPool&) = delete;
    ThreadPool& operator=(const ThreadPool&) = delete;

    [[nodiscard]] std::size_t threads() const { return threads_; }

    // Calls task(i) for every i < count and returns when all are done; the first exception is thrown again here.
    // Runs on the caller's thread alone if the whole is less than about 200 microseconds of work (`cost` is in
    // elements touched), or if another thread is using the pool. Safe to call from several threads and after fork().
    template <typename Task>
    void run(std::size_t count, std::size_t cost, const Task& task) {
        run_erased(count, cost, &task,
                   [](const void* erased, std::size_t index) { (*static_cast<const Task*>(erased))(index); });
    }

 private:
    using Call = void (*)(const void*, std::size_t);
    struct Workers;

    void run_erased(std::size_t count, std::size_t cost, const void* task, Call call);
    Workers* workers();

    std::size_t threads_;
    std::atomic<Workers*> workers_{nullptr};
};

}  // namespace camrt
