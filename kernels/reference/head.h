// What the estimators are made of: one query head over its visible tokens, in fp64.
#ifndef SANTA_KERNELS_REFERENCE_HEAD_H_
#define SANTA_KERNELS_REFERENCE_HEAD_H_

#include <cmath>
#include <cstdint>
#include <random>
#include <vector>

#include "kernels/reference/estimators.h"

namespace santa::reference {

using Vector = std::vector<double>;
using Rows = std::vector<Vector>;  // [row][D]

// One query head over its visible tokens.
struct Head {
  Vector p;       // softmax over the visible tokens
  Rows v;         // their value rows
  int64_t first;  // position of the first visible token
  double lse;     // sink included
  double visible_lse;
  double sink_free;  // w
};

Head MakeHead(const Step& step, int32_t head);

// sum_i p_i v_i
Vector Mean(const Vector& p, const Rows& v);

// [0, 1)
inline double Uniform(std::mt19937_64& random) { return std::ldexp(static_cast<double>(random() >> 11), -53); }

}  // namespace santa::reference

#endif  // SANTA_KERNELS_REFERENCE_HEAD_H_
