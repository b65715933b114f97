// One SIMD level of the native learner and actor: compiled once per level, with its flags and PPO_FAST_LEVEL_... defined.
#include "actor.hpp"
#include "peak.hpp"
#include "ppo_update.hpp"

namespace ppo_fast {

#if defined(PPO_FAST_LEVEL_AVX512)
const Level kLevelAvx512 = {"avx512", &refresh, &gradient, &step, &epoch, &act, &peak};
#elif defined(PPO_FAST_LEVEL_AVX2)
const Level kLevelAvx2 = {"avx2", &refresh, &gradient, &step, &epoch, &act, &peak};
#else
const Level kLevelBaseline = {"baseline", &refresh, &gradient, &step, &epoch, &act, &peak};
#endif

}  // namespace ppo_fast
