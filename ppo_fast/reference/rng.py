"""Random numbers that are pure functions of a name: Philox4x32-10 and an inverse normal CDF.

There is no generator object and no state. A draw is named by a 128-bit counter and a 64-bit key (the run's seed), and
Philox, a small keyed mixing function, turns the name into four 32-bit words. So no draw depends on what was drawn
before it, on threads, on the order in which environments answer, or on a restart.

Everything here uses only integer arithmetic, ``+ - * /``, ``sqrt`` and the exponent bits of a double, each of which
IEEE 754 defines to the last bit, so that C++ (csrc/rng.hpp) and Numba return the very same numbers.
No ``log`` or ``exp`` of a maths library is called: those differ from one library to the next.

Who owns which counters (``c0, c1, c2, c3``; the top byte of c3 is a tag, so that no two purposes can meet):

    NOISE         (block, step low, env, tag | step high)     action noise
    PERMUTATION   (block, stream low, 0, tag | stream high)   minibatch order
    ENV_SEED      (0, 0, 0, tag | purpose)                    seeds given to simulators
    INIT                                                      initial parameters
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

NOISE, PERMUTATION, ENV_SEED, INIT = (tag << 24 for tag in (1, 2, 3, 4))
LOW_32_BITS = 0xFFFFFFFF

MULTIPLIER_0, MULTIPLIER_1 = 0xD2511F53, 0xCD9E8D57  # Salmon et al., section 3.3 and Random123's philox.h
WEYL_0, WEYL_1 = 0x9E3779B9, 0xBB67AE85  # golden ratio and sqrt(3) - 1, in units of 2**-32
ROUNDS = 10

# AS241 (Wichura 1988), routine PPND16. Each pair is numerator, denominator of a rational function, lowest power first.
CENTRE_NUM = (
    3.3871328727963666080e0,
    1.3314166789178437745e2,
    1.9715909503065514427e3,
    1.3731693765509461125e4,
    4.5921953931549871457e4,
    6.7265770927008700853e4,
    3.3430575583588128105e4,
    2.5090809287301226727e3,
)
CENTRE_DEN = (
    1.0,
    4.2313330701600911252e1,
    6.8718700749205790830e2,
    5.3941960214247511077e3,
    2.1213794301586595867e4,
    3.9307895800092710610e4,
    2.8729085735721942674e4,
    5.2264952788528545610e3,
)
TAIL_NUM = (
    1.42343711074968357734e0,
    4.63033784615654529590e0,
    5.76949722146069140550e0,
    3.64784832476320460504e0,
    1.27045825245236838258e0,
    2.41780725177450611770e-1,
    2.27238449892691845833e-2,
    7.74545014278341407640e-4,
)
TAIL_DEN = (
    1.0,
    2.05319162663775882187e0,
    1.67638483018380384940e0,
    6.89767334985100004550e-1,
    1.48103976427480074590e-1,
    1.51986665636164571966e-2,
    5.47593808499534494600e-4,
    1.05075007164441684324e-9,
)
FAR_NUM = (
    6.65790464350110377720e0,
    5.46378491116411436990e0,
    1.78482653991729133580e0,
    2.96560571828504891230e-1,
    2.65321895265761230930e-2,
    1.24266094738807843860e-3,
    2.71155556874348757815e-5,
    2.01033439929228813265e-7,
)
FAR_DEN = (
    1.0,
    5.99832206555887937690e-1,
    1.36929880922735805310e-1,
    1.48753612908506148525e-2,
    7.86869131145613259100e-4,
    1.84631831751005468180e-5,
    1.42151175831644588870e-7,
    2.04426310338993978564e-15,
)
LN_2 = 0.6931471805599453
SQRT_HALF = 0.7071067811865476
# atanh(s) / s = 1 + s**2/3 + s**4/5 + ...; with s**2 <= 0.0295 the first term left out is below 2**-56 of the sum.
ATANH_SERIES = tuple(1.0 / (2 * k + 1) for k in range(11))

Words = tuple[Any, ...]  # Python ints, or uint64 arrays that broadcast together


def philox4x32(counter: Words, key: Words) -> Words:
    """Mix a 128-bit counter under a 64-bit key into four 32-bit words, with ten rounds.

        hi0:lo0 = M0 * c0        hi1:lo1 = M1 * c2          (32 x 32 -> 64 bits)
        c <- (hi1 ^ c1 ^ k0, lo1, hi0 ^ c3 ^ k1, lo0);      k <- k + Weyl

    Args:
        counter: four words below 2**32, each a Python int or a uint64 array.
        key: two words below 2**32, likewise.

    Returns:
        Four words below 2**32, of the inputs' kind.

    Source: Salmon, Moraes, Dror and Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011.
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(ROUNDS):
        product0 = MULTIPLIER_0 * c0
        product1 = MULTIPLIER_1 * c2
        c0, c1, c2, c3 = (
            (product1 >> 32) ^ c1 ^ k0,
            product1 & LOW_32_BITS,
            (product0 >> 32) ^ c3 ^ k1,
            product0 & LOW_32_BITS,
        )
        k0 = (k0 + WEYL_0) & LOW_32_BITS
        k1 = (k1 + WEYL_1) & LOW_32_BITS
    return c0, c1, c2, c3


def key_of(seed: int) -> tuple[int, int]:
    """Split a run's seed, 0 <= seed < 2**64, into Philox's two key words, low word first."""
    return seed & LOW_32_BITS, seed >> 32


def uniform(bits: npt.NDArray[np.uint64]) -> npt.NDArray[np.float64]:
    """Turn 64 random bits into a float64 strictly inside (0, 1): the top 52 bits k give (k + 1/2) / 2**52.

    52 and not 53 bits, because k + 1/2 must be exact: with 53 the largest k would round up to 1.0, whose normal
    quantile is infinite. As it is, u and 1 - u are both representable and the draw is symmetric about 1/2.
    """
    return ((bits >> 12).astype(np.float64) + 0.5) * 2.0**-52


def polynomial(coefficients: tuple[float, ...], x: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Evaluate sum_k coefficients[k] * x**k by Horner's rule, highest power first."""
    result = np.full_like(x, coefficients[-1])
    for coefficient in reversed(coefficients[:-1]):
        result = result * x + coefficient
    return result


def log(x: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Compute the natural logarithm of normal positive doubles, without a maths library.

    x = m * 2**e,  sqrt(1/2) <= m < sqrt(2)
    log x = e * ln 2 + 2 * atanh((m - 1) / (m + 1))
    """
    m, e = np.frexp(x)  # 1/2 <= m < 1
    low = m < SQRT_HALF
    m = np.where(low, 2.0 * m, m)
    e = np.where(low, e - 1, e)
    s = (m - 1.0) / (m + 1.0)
    result: npt.NDArray[np.float64] = e * LN_2 + 2.0 * s * polynomial(ATANH_SERIES, s * s)
    return result


def inverse_normal_cdf(u: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return x with Phi(x) = u, the standard normal quantile, to about 1e-15 relative.

        centre, |u - 1/2| <= 0.425:   x = q * N(s) / D(s),   q = u - 1/2,  s = 0.425**2 - q**2
        tail, p = min(u, 1 - u):      x = +-N(r') / D(r'),   r = sqrt(-log p),  r' = r - 1.6 or, beyond r = 5, r - 5

    Args:
        u: float64 array of any shape, strictly inside (0, 1).

    Source: Wichura, Algorithm AS241 (PPND16), Applied Statistics 37 (1988) 477-484.
    """
    q = u - 0.5
    s = 0.180625 - q * q
    centre = q * polynomial(CENTRE_NUM, s) / polynomial(CENTRE_DEN, s)
    r = np.sqrt(-log(np.where(q < 0.0, u, 1.0 - u)))
    near = polynomial(TAIL_NUM, r - 1.6) / polynomial(TAIL_DEN, r - 1.6)
    far = polynomial(FAR_NUM, r - 5.0) / polynomial(FAR_DEN, r - 5.0)
    tail = np.where(r <= 5.0, near, far)
    return np.where(np.abs(q) <= 0.425, centre, np.where(q < 0.0, -tail, tail))


def uniforms(
    seed: int, env_ids: npt.NDArray[np.int64], steps: npt.NDArray[np.int64], dim: int
) -> npt.NDArray[np.float64]:
    """Draw the uniform action noise of (env, step) rows; each row depends on nothing else.

    Block j of a row gives its numbers 2j and 2j + 1: words w0..w3 make the two 64-bit numbers w1:w0 and w3:w2.

    Args:
        seed: the run's seed, 0 <= seed < 2**64.
        env_ids: (n,) global environment indices, 0 <= env < 2**32.
        steps: (n,) step numbers of those environments, 0 <= step < 2**56.
        dim: numbers per row.

    Returns:
        (n, dim) float64, each strictly inside (0, 1), see :func:`uniform`.
    """
    env = np.asarray(env_ids).astype(np.uint64)[:, None]
    step = np.asarray(steps).astype(np.uint64)[:, None]
    block = np.arange((dim + 1) // 2, dtype=np.uint64)[None, :]
    w0, w1, w2, w3 = philox4x32((block, step & LOW_32_BITS, env, NOISE | step >> 32), key_of(seed))
    bits = np.stack([w1 << 32 | w0, w3 << 32 | w2], axis=-1)  # (n, blocks, 2)
    return uniform(bits.reshape(len(env), 2 * block.size)[:, :dim])


def normals(
    seed: int, env_ids: npt.NDArray[np.int64], steps: npt.NDArray[np.int64], dim: int
) -> npt.NDArray[np.float64]:
    """Draw the standard normal action noise of (env, step) rows: the normal quantiles of their :func:`uniforms`."""
    return inverse_normal_cdf(uniforms(seed, env_ids, steps, dim))


def env_seeds(seed: int, first_env: int, num_envs: int, purpose: int = 0) -> npt.NDArray[np.int64]:
    """Return the seeds given to the simulators of global environments first_env ... first_env + num_envs - 1.

        seed of env e = (philox(key = seed, counter = (0, 0, 0, ENV_SEED | purpose))[0] + e) mod 2**31

    Consecutive within a run, so that they are distinct; the base is scrambled, so that runs with seeds 1 and 2 do not
    share all but one of their environments.

    Args:
        seed: the run's seed, 0 <= seed < 2**64.
        first_env: global index of the first environment (rank * num_envs under data parallelism).
        num_envs: how many.
        purpose: 0 for training, 1 for evaluation, below 2**24.

    Returns:
        (num_envs,) int64, each in [0, 2**31): what C and C++ simulators accept as a non-negative int.
    """
    base = int(philox4x32((0, 0, 0, ENV_SEED | purpose), key_of(seed))[0])
    return (base + first_env + np.arange(num_envs, dtype=np.int64)) % 2**31
