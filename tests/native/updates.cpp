// Updates and rollouts of the native learner and actor without Python, for compilers and processors that Python's tests do not
// see: prints a hash of every number that they leave behind, and fails if the number of threads shows in one.
#include <cstdint>
#include <cstdio>
#include <memory>
#include <vector>

#include "ppo_actor.hpp"
#include "ppo_learner.hpp"

namespace {

using namespace ppo_fast;

constexpr std::size_t kBatch = 1024, kMinibatch = 512, kObs = 11, kEnvs = 150, kSteps = 3;

class Random {  // xorshift64
   public:
    float operator()() {
        state_ ^= state_ << 13;
        state_ ^= state_ >> 7;
        state_ ^= state_ << 17;
        return static_cast<float>(static_cast<double>(state_ >> 11) * 0x1p-52 - 1.0);  // in [-1, 1)
    }

    std::vector<float> operator()(std::size_t n, float scale = 1.0F) {
        std::vector<float> out(n);
        for (float& x : out) {
            x = scale * (*this)();
        }
        return out;
    }

   private:
    std::uint64_t state_ = 88172645463325252U;
};

class Hash {  // FNV-1a
   public:
    template <typename T>
    void add(const std::vector<T>& values) {
        const auto* bytes = reinterpret_cast<const unsigned char*>(values.data());
        for (std::size_t i = 0; i < values.size() * sizeof(T); ++i) {
            value = (value ^ bytes[i]) * 1099511628211U;
        }
    }

    std::uint64_t value = 14695981039346656037U;
};

std::uint64_t learn(const Networks& nets, std::size_t threads) {
    Random random;
    const Hyper hyper{0.2F, 0.01F, 0.5F, 0.5F, 1e-5F, true, true};
    PpoLearner learner(nets, kBatch, kMinibatch, hyper, threads, kLevelBaseline);
    std::vector<float> flat = random(learner.num_params(), 0.3F), m(flat.size()), v(flat.size()), gradient(flat.size());
    std::vector<float> obs = random(kBatch * kObs), actions = random(kBatch * nets.act_dim), log_probs = random(kBatch);
    std::vector<float> advantages = random(kBatch), returns = random(kBatch), values = random(kBatch), valid = random(kBatch);
    for (std::size_t i = 0; i < kBatch; ++i) {
        log_probs[i] -= 3.0F;
        valid[i] = valid[i] > -0.8F ? 1.0F : 0.0F;
        if (nets.num_actions > 0) {
            actions[i] = static_cast<float>(i % nets.num_actions);
        }
    }
    const Rows rows{obs.data(),     actions.data(), log_probs.data(), advantages.data(),
                    returns.data(), values.data(),  valid.data()};
    std::vector<double> stats(3 * kNumStats);
    learner.load(flat.data(), m.data(), v.data(), 0);
    learner.update(rows, kBatch, kMinibatch, 3, 1, 0, 1e-3, 1e9, stats.data());
    std::vector<std::int64_t> index(kMinibatch);
    permutation(index.data(), kMinibatch, 1, 9);
    learner.gradient(rows, index.data(), kMinibatch, gradient.data(), stats.data());
    learner.step(gradient.data(), 1e-3);
    learner.save(flat.data(), m.data(), v.data());
    Hash hash;
    for (const auto* part : {&flat, &m, &v, &gradient}) {
        hash.add(*part);
    }
    hash.add(stats);
    return hash.value;
}

std::uint64_t act(const Networks& nets) {
    Random random;
    constexpr std::size_t rows = kSteps * kEnvs;
    const Scaling scaling{std::vector<double>(nets.act_dim, -0.4), std::vector<double>(nets.act_dim, 0.4),
                          std::vector<bool>(nets.act_dim, nets.num_actions == 0)};
    PpoActor actor(nets, kEnvs, kSteps, 7, 0, true, 2.0F, scaling, kLevelBaseline);
    const std::vector<float> flat = random(actor.num_params(), 0.3F), mean = random(kObs), inv_std = random(kObs);
    actor.load(flat.data(), mean.data(), inv_std.data());
    std::vector<float> obs = random((rows + kEnvs) * kObs), norm_obs(obs.size()), actions(rows * nets.act_dim),
                       log_probs(rows), values(rows + kEnvs), rewards(rows);
    const std::unique_ptr<bool[]> flags(new bool[3 * rows]());
    std::vector<std::int32_t> env(kEnvs);
    std::vector<double> out(kEnvs * nets.act_dim);
    const Answers answers{env.data(), out.data()};
    std::size_t n = actor.begin({obs.data(), norm_obs.data(), actions.data(), log_probs.data(), values.data(), rewards.data(),
                                 flags.get(), flags.get() + rows, flags.get() + 2 * rows},
                                0, answers);
    Hash hash;
    while (actor.remaining() > 0) {
        hash.add(out);
        const std::vector<std::int32_t> back(env.begin(), env.begin() + static_cast<std::ptrdiff_t>(n));
        const std::vector<float> from = random(n * kObs), paid = random(n);
        const std::unique_ptr<bool[]> no(new bool[n]());
        if (!actor.claim(back.data(), n)) {
            return 0;
        }
        n = actor.receive({back.data(), paid.data(), no.get(), no.get(), no.get()}, from.data(), n, answers);
    }
    for (const auto* part : {&obs, &norm_obs, &actions, &log_probs, &values, &rewards}) {
        hash.add(*part);
    }
    return hash.value;
}

}  // namespace

int main() {
    for (const Activation activation : {Activation::tanh, Activation::relu, Activation::elu, Activation::silu}) {
        for (const std::size_t num_actions : {0, 5}) {
            const bool shared_trunk = (activation == Activation::tanh) == (num_actions > 0);
            const Networks nets{kObs, num_actions > 0 ? 1U : 3U, num_actions, {33, 17}, activation, shared_trunk};
            const std::uint64_t learned = learn(nets, 1), acted = act(nets);
            for (const std::size_t threads : {2, 3, 4}) {
                if (learn(nets, threads) != learned) {
                    std::printf("%zu threads show\n", threads);
                    return 1;
                }
            }
            std::printf("%016llx %016llx\n", static_cast<unsigned long long>(learned),
                        static_cast<unsigned long long>(acted));
        }
    }
}
