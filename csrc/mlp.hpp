// Forward and backward pass of an MLP over a minibatch, equal to ppo_fast/models.py (ActorCritic.mlp) up to rounding.
//   y_l = act(b_l + x_l W_l),  x_{l+1} = y_l
//   dW_l = x_l^T delta_l,  db_l = sum of the rows of delta_l,  delta_{l-1} = (delta_l W_l^T) act'(y_{l-1})
// Every number is one sequential chain of fused multiply-adds over its inner index, so it depends neither on its place in
// the minibatch nor on the minibatch's size; gradients sum over the rows in order, slice after slice.
#pragma once

#include "ppo_state.hpp"
#include "simd.hpp"

namespace ppo_fast {
namespace {

// out[i, j] = start[i, j] + sum_p a[i, p] b[p, j], for a tile of kRows x (kVectors * kLanes) held in registers
template <int kRows, int kVectors>
inline void tile(const float* a, std::size_t a_row, std::size_t a_inner, const float* b, std::size_t b_row,
                 std::size_t inner, const float* start, std::size_t start_row, float* out, std::size_t out_row) {
    V sum[kRows][kVectors];
    for (int i = 0; i < kRows; ++i) {
        for (int j = 0; j < kVectors; ++j) {
            sum[i][j] = start ? load(start + static_cast<std::size_t>(i) * start_row + j * kLanes) : V{};
        }
    }
    for (std::size_t p = 0; p < inner; ++p) {
        V right[kVectors];
        for (int j = 0; j < kVectors; ++j) {
            right[j] = load(b + j * kLanes);
        }
        for (int i = 0; i < kRows; ++i) {
            const V left = splat(a[static_cast<std::size_t>(i) * a_row]);
            for (int j = 0; j < kVectors; ++j) {
                sum[i][j] = fma(left, right[j], sum[i][j]);
            }
        }
        a += a_inner;
        b += b_row;
    }
    for (int i = 0; i < kRows; ++i) {
        for (int j = 0; j < kVectors; ++j) {
            store(out + static_cast<std::size_t>(i) * out_row + j * kLanes, sum[i][j]);
        }
    }
}

struct Product {  // out (rows, cols) = start + a (rows, inner) b (inner, cols); cols is a multiple of kLanes
    const float* a;
    std::size_t a_row, a_inner;
    const float* b;
    std::size_t b_row;
    std::size_t rows, inner, cols;
    const float* start;  // null: 0; with start_row 0 the same for every row
    std::size_t start_row;
    float* out;
    std::size_t out_row;
};

template <int kRows, int kVectors>
inline std::size_t tiles_down(const Product& m, std::size_t col, std::size_t row) {
    for (; row + kRows <= m.rows; row += kRows) {
        tile<kRows, kVectors>(m.a + row * m.a_row, m.a_row, m.a_inner, m.b + col, m.b_row, m.inner,
                              m.start ? m.start + row * m.start_row + col : nullptr, m.start_row,
                              m.out + row * m.out_row + col, m.out_row);
    }
    return row;
}

template <int kVectors>
inline std::size_t tiles_across(const Product& m, std::size_t col) {
    constexpr std::size_t width = static_cast<std::size_t>(kVectors) * kLanes;
    for (; col + width <= m.cols; col += width) {
        std::size_t row = 0;
        if (kVectors == 1) {
            row = tiles_down<8, kVectors>(m, col, row);  // one vector alone needs more rows to hide the latency
        }
        row = tiles_down<kTileRows, kVectors>(m, col, row);
        row = tiles_down<4, kVectors>(m, col, row);
        row = tiles_down<2, kVectors>(m, col, row);
        tiles_down<1, kVectors>(m, col, row);
    }
    return col;
}

inline void multiply(const Product& m) {
    std::size_t col = tiles_across<kTileVectors>(m, 0);
    if (kTileVectors > 2) {
        col = tiles_across<2>(m, col);
    }
    tiles_across<1>(m, col);
}

// y = act(y), and for SiLU slope = act'(y), over n numbers, n a multiple of kPad
inline void activate(Activation activation, float* y, float* slope, std::size_t n) {
    const V zero = V{}, one = splat(1.0F);
    switch (activation) {
        case Activation::tanh:
            for (std::size_t i = 0; i < n; i += kLanes) {
                store(y + i, tanh(load(y + i)));
            }
            return;
        case Activation::relu:
            for (std::size_t i = 0; i < n; i += kLanes) {
                const V x = load(y + i);
                store(y + i, x < zero ? zero : x);
            }
            return;
        case Activation::elu:
            for (std::size_t i = 0; i < n; i += kLanes) {
                const V x = load(y + i);
                store(y + i, x > zero ? x : expm1(clamp(x, -86.0F, 0.0F)));
            }
            return;
        case Activation::silu:
            for (std::size_t i = 0; i < n; i += kLanes) {
                const V x = load(y + i);
                const V logistic = one / (one + exp(-x));
                store(slope + i, logistic * fma(x, one - logistic, one));
                store(y + i, x * logistic);
            }
            return;
    }
}

// delta = delta * act', with act' from the output y where it follows from it
inline void chain(Activation activation, float* delta, const float* y, const float* slope, std::size_t n) {
    const V zero = V{}, one = splat(1.0F);
    switch (activation) {
        case Activation::tanh:
            for (std::size_t i = 0; i < n; i += kLanes) {
                const V out = load(y + i);
                store(delta + i, load(delta + i) * fma(-out, out, one));
            }
            return;
        case Activation::relu:
            for (std::size_t i = 0; i < n; i += kLanes) {
                store(delta + i, load(y + i) > zero ? load(delta + i) : zero);
            }
            return;
        case Activation::elu:
            for (std::size_t i = 0; i < n; i += kLanes) {
                const V out = load(y + i);
                store(delta + i, load(delta + i) * (out > zero ? one : out + one));
            }
            return;
        case Activation::silu:
            for (std::size_t i = 0; i < n; i += kLanes) {
                store(delta + i, load(delta + i) * load(slope + i));
            }
            return;
    }
}

inline void forward(const Model& model, const Net& net, const Workspace& w, std::size_t rows) {
    const float* x = w.obs;
    std::size_t x_row = model.obs_dim;
    for (std::size_t l = 0; l < net.num_layers; ++l) {
        const Layer& layer = net.layers[l];
        multiply({x, x_row, 1, model.params + layer.weight, layer.out_pad, rows, layer.in, layer.out_pad,
                  model.params + layer.bias, 0, w.output[l], layer.out_pad});
        if (l + 1 < net.num_layers) {
            activate(model.activation, w.output[l], w.slope[l], rows * layer.out_pad);
        }
        x = w.output[l];
        x_row = layer.out_pad;
    }
}

// From the delta of the last layer to the gradient of every layer, which continues the sums of the lane's earlier slices.
inline void backward(const Model& model, const Net& net, const Workspace& w, float* grad, std::size_t rows,
                     bool first_slice) {
    for (std::size_t l = net.num_layers; l-- > 0;) {
        const Layer& layer = net.layers[l];
        const float* x = l > 0 ? w.output[l - 1] : w.obs;
        const std::size_t x_row = l > 0 ? net.layers[l - 1].out_pad : model.obs_dim;
        float* weight = grad + (layer.weight - net.begin);
        float* bias = grad + (layer.bias - net.begin);
        multiply({x, 1, x_row, w.delta[l], layer.out_pad, layer.in, rows, layer.out_pad, first_slice ? nullptr : weight,
                  layer.out_pad, weight, layer.out_pad});
        for (std::size_t j = 0; j < layer.out_pad; j += kLanes) {
            V sum = first_slice ? V{} : load(bias + j);
            for (std::size_t m = 0; m < rows; ++m) {
                sum += load(w.delta[l] + m * layer.out_pad + j);
            }
            store(bias + j, sum);
        }
        if (l > 0) {
            const std::size_t below = net.layers[l - 1].out_pad;
            multiply({w.delta[l], layer.out_pad, 1, model.backward + layer.backward, below, rows, layer.out, below, nullptr, 0,
                      w.delta[l - 1], below});
            chain(model.activation, w.delta[l - 1], w.output[l - 1], w.slope[l - 1], rows * below);
        }
    }
}

// The transpose of rows [k0, k1) of a layer's packed weights, k0 a multiple of 4; its padding is 0 from the start and stays 0.
inline void transpose(const Model& model, const Layer& layer, std::size_t k0, std::size_t k1) {
    const std::size_t in_pad = padded(layer.in);
    const float* from = model.params + layer.weight;
    for (std::size_t c = 0; c < layer.out; c += 4) {  // the padding of the columns becomes rows of 0
        float* to = model.backward + layer.backward + c * in_pad;
        std::size_t k = k0;
        for (; k + 4 <= k1; k += 4) {
            transpose4(from + k * layer.out_pad + c, layer.out_pad, to + k, in_pad);
        }
        for (; k < k1; ++k) {
            for (std::size_t i = 0; i < 4; ++i) {
                to[i * in_pad + k] = from[k * layer.out_pad + c + i];
            }
        }
    }
}

}  // namespace
}  // namespace ppo_fast
