// A team of threads for a loop over rows.
//
// torch's products run on OpenMP threads that spin for a while when a product ends. Other threads would
// fight them for the cores, so the team is torch's own: the address of its runtime's GOMP_parallel comes
// from Python. Without one (another runtime) plain threads do.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <functional>
#include <thread>
#include <vector>

namespace ligo {

struct Team {
    int threads = 1;
    std::uintptr_t gomp_parallel = 0;

    // work(first, last) on parts of 0..n, each taken by whichever thread is free: a team may turn out
    // smaller than asked for, and a thread may be slow.
    void split(std::int64_t n, const std::function<void(std::int64_t, std::int64_t)>& work) const {
        const std::int64_t parts = threads > 1 ? std::min<std::int64_t>(n, 32 * threads) : 1;
        if (parts <= 1) return work(0, n);
        Loop loop{work, n, parts};
        if (gomp_parallel) {
            using Parallel = void (*)(void (*)(void*), void*, unsigned, unsigned);
            reinterpret_cast<Parallel>(gomp_parallel)(Loop::run, &loop, unsigned(threads), 0);
            return;
        }
        std::vector<std::thread> others;
        for (int i = 1; i < threads; ++i) others.emplace_back(Loop::run, &loop);
        Loop::run(&loop);
        for (auto& other : others) other.join();
    }

   private:
    struct Loop {
        const std::function<void(std::int64_t, std::int64_t)>& work;
        std::int64_t n, parts;
        std::atomic<std::int64_t> next{0};

        static void run(void* data) {
            auto& self = *static_cast<Loop*>(data);
            for (std::int64_t i; (i = self.next++) < self.parts;)
                self.work(self.n * i / self.parts, self.n * (i + 1) / self.parts);
        }
    };
};

}  // namespace ligo
