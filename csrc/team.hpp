// The learner's threads: every one runs the same function, and they meet at barriers. Within a run they spin, since phases are
// microseconds apart and the simulator stands still meanwhile; some 100 us after one they fall asleep.
#pragma once

#include <unistd.h>

#include <atomic>
#include <condition_variable>
#include <cstddef>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

#include "ppo_state.hpp"

namespace ppo_fast {

class Team {
   public:
    explicit Team(std::size_t size);  // the caller of run() is one of them
    ~Team();
    Team(const Team&) = delete;
    Team& operator=(const Team&) = delete;

    std::size_t size() const { return size_; }
    bool forked() const;  // whether this is a copy in a child process, which has lost the threads

    // Call work once in every thread, and return when all have; in a forked
    // process in this thread alone.
    void run(const std::function<void(const Me&)>& work);

    // Wait until all threads are here; what they wrote before is seen by all.
    void wait();

   private:
    static constexpr int kSpins = 4000;  // some 100 us: longer than a phase of small networks

    void serve(std::size_t thread);
    void close();  // and wait until every thread has ended

    static void pause() {
#if defined(__x86_64__)
        __builtin_ia32_pause();
#elif defined(__aarch64__)
        __asm__ volatile("yield");
#endif
    }

    const std::size_t size_;
    const pid_t owner_;
    std::vector<std::thread> threads_;
    std::mutex mutex_;
    std::condition_variable wake_;
    const std::function<void(const Me&)>* work_ = nullptr;
    std::atomic<std::size_t> round_{0};
    bool closing_ = false;
    alignas(64) std::atomic<std::size_t> arrived_{0};
    alignas(64) std::atomic<std::size_t> phase_{0};
};

// Frees a team, but not its copy in a forked process: destructors there would wait for threads that do not exist.
struct Dismiss {
    void operator()(Team* team) const {
        if (!team->forked()) {
            delete team;
        }
    }
};

}  // namespace ppo_fast
