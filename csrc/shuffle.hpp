// A random permutation named by (seed, stream), bit-equal to ppo_fast/reference/shuffle.py (permutation).
//   for i = n - 1, ..., 1:  swap order[i] with order[j],  j uniform in [0, i]
//   j: word * (i + 1) = high * 2^32 + low;  j = high, unless low < 2^32 mod (i + 1): then take the next word
//   words: philox(key = seed, counter = (0, 1, 2, ...; stream low, 0, PERMUTATION | stream high)), in order
// Source: Durstenfeld, CACM 7 (1964) 420; Lemire, arXiv:1805.10941.
#pragma once

#include <cstddef>
#include <cstdint>
#include <utility>

#include "rng.hpp"

namespace ppo_fast {

class PermutationWords {
   public:
    PermutationWords(std::uint64_t seed, std::uint64_t stream) : seed_(seed), stream_(stream) {}

    std::uint32_t next() {
        if (taken_ == block_.size()) {
            block_ = philox4x32({counter_++, low_word(stream_), 0, kPermutation | high_word(stream_)}, seed_);
            taken_ = 0;
        }
        return block_[taken_++];
    }

    std::uint32_t below(std::uint32_t bound) {
        std::uint64_t product = std::uint64_t{next()} * bound;
        if (low_word(product) < bound) {  // 2^32 mod bound < bound, so the division is rarely needed
            const std::uint32_t reject_below = (0U - bound) % bound;
            while (low_word(product) < reject_below) {
                product = std::uint64_t{next()} * bound;
            }
        }
        return high_word(product);
    }

   private:
    std::uint64_t seed_;
    std::uint64_t stream_;
    std::uint32_t counter_ = 0;
    Block block_{};
    std::size_t taken_ = 4;
};

inline void permutation(std::int64_t* order, std::size_t n, std::uint64_t seed, std::uint64_t stream) {
    for (std::size_t i = 0; i < n; ++i) {
        order[i] = static_cast<std::int64_t>(i);
    }
    PermutationWords words(seed, stream);
    for (std::size_t i = n; i-- > 1;) {
        std::swap(order[i], order[words.below(static_cast<std::uint32_t>(i + 1))]);
    }
}

}  // namespace ppo_fast
