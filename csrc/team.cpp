#include "team.hpp"

#include <sched.h>

namespace ppo_fast {

Team::Team(std::size_t size) : size_(size), owner_(getpid()) {
    try {
        for (std::size_t thread = 1; thread < size; ++thread) {
            threads_.emplace_back([this, thread] { serve(thread); });
        }
    } catch (...) {  // no more threads are to be had here; those there are would end the process if they were left
        close();
        throw;
    }
}

Team::~Team() { close(); }

void Team::close() {
    {
        const std::lock_guard<std::mutex> lock(mutex_);
        closing_ = true;
    }
    wake_.notify_all();
    for (std::thread& thread : threads_) {
        thread.join();
    }
}

bool Team::forked() const { return getpid() != owner_; }

void Team::run(const std::function<void(const Me&)>& work) {
    if (size_ == 1 || forked()) {
        work({this, 0, 1});
        return;
    }
    {
        const std::lock_guard<std::mutex> lock(mutex_);
        work_ = &work;
        round_.store(round_.load(std::memory_order_relaxed) + 1, std::memory_order_release);
    }
    wake_.notify_all();
    work({this, 0, size_});
    wait();  // until all have returned from work
}

void Team::serve(std::size_t thread) {
    std::size_t seen = 0;
    for (;;) {
        for (int spins = 0; spins < kSpins && round_.load(std::memory_order_acquire) == seen; ++spins) {
            pause();  // the next epoch of an update follows at once
        }
        {
            std::unique_lock<std::mutex> lock(mutex_);
            wake_.wait(lock, [&] { return closing_ || round_.load(std::memory_order_relaxed) != seen; });
            if (closing_) {
                return;
            }
            seen = round_.load(std::memory_order_relaxed);
        }
        (*work_)({this, thread, size_});
        wait();
    }
}

void Team::wait() {
    const std::size_t phase = phase_.load(std::memory_order_relaxed);
    if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == size_) {
        arrived_.store(0, std::memory_order_relaxed);
        phase_.store(phase + 1, std::memory_order_release);
        return;
    }
    for (int spins = 0; phase_.load(std::memory_order_acquire) == phase; ++spins) {
        if (spins < kSpins) {
            pause();
        } else {
            sched_yield();  // somebody else wants this core
        }
    }
}

void barrier(Team& team) { team.wait(); }

}  // namespace ppo_fast
