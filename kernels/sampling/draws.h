// Where S draws fall on a line of whole-number masses (kernels/sampling/mass.h), and how many fall on a row.
//
// Lay the masses end to end: row i covers the integers [C_{i-1}, C_i), C the inclusive cumulative sums, W = C_{n-1}
// their total. A draw is an integer x in [0, W) and takes the row that covers it; a row of mass 0 covers nothing. Draw
// j is at
//
//     independent   x_j = R_j                         R_j uniform in [0, W)
//     stratified    x_j = floor((j W + R_j) / S)      one R_j a draw: uniform on stratum j, [j W / S, (j + 1) W / S)
//     systematic    x_j = floor((j W + R) / S)        one R for all
//
// (arXiv 2605.01910: u_j = U_j, (j + U_j) / S and (j + U) / S with u = x / W.) The number of stratified or systematic
// draws below C is exactly 0 at C = 0 and S at C = W, grows with C, and has the expectation S C / W without rounding:
// row i is drawn S p_i times on average. Systematically it is drawn floor(S p_i) or ceil(S p_i) times.
// Stratified and systematic draws come in ascending order.
#ifndef SANTA_KERNELS_SAMPLING_DRAWS_H_
#define SANTA_KERNELS_SAMPLING_DRAWS_H_

#include <cstdint>

#include "kernels/sampling/host_device.h"

namespace santa::sampling {

// number / divisor, exactly, given inverse = 1.0 / divisor: where the number is below 2^52, as it is on a tile, without
// the long division of 64-bit integers.
struct Quotient {
  uint64_t whole;
  uint32_t rest;
};
SANTA_HOST_DEVICE Quotient Divide(uint64_t number, uint32_t divisor, double inverse) {
  if (number >> 52 != 0) return {number / divisor, static_cast<uint32_t>(number % divisor)};
  // The product is within 1 of the true quotient.
  auto whole = static_cast<int64_t>(static_cast<double>(number) * inverse);
  auto rest = static_cast<int64_t>(number) - whole * divisor;
  if (rest < 0) {
    --whole;
    rest += divisor;
  } else if (rest >= divisor) {
    ++whole;
    rest -= divisor;
  }
  return {static_cast<uint64_t>(whole), static_cast<uint32_t>(rest)};
}

// S draws over a total mass W: W = step * S + rest.
struct DrawGrid {
  uint64_t total;  // W, [1, 2^62]
  uint64_t step;
  uint32_t rest;
  uint32_t draws;  // S, [1, 2^20]
  double inverse;  // 1 / S
};

SANTA_HOST_DEVICE DrawGrid MakeDrawGrid(uint64_t total, uint32_t draws) {
  const double inverse = 1.0 / draws;
  const Quotient quotient = Divide(total, draws, inverse);
  return {total, quotient.whole, quotient.rest, draws, inverse};
}

// x_j of a stratified or systematic draw; draw in [0, S), offset in [0, W): UniformBelow(random, W).
SANTA_HOST_DEVICE uint64_t DrawPosition(const DrawGrid& grid, uint32_t draw, uint64_t offset) {
  // floor((j W + R) / S) with W = step S + rest: no product exceeds 64 bits.
  const uint64_t numerator = static_cast<uint64_t>(draw) * grid.rest + offset;
  return draw * grid.step + Divide(numerator, grid.draws, grid.inverse).whole;
}

// The systematic draws one after another, without a division each. Walk the rows beside it:
//
//     for each row i:  for (count = 0; cursor.position() < C_i; cursor.Advance()) ++count;
//
// After the last draw position() is >= W, so the loop needs no other end.
class SystematicCursor {
 public:
  // Stands at draw `draw` in [0, S]; at S it is past the last one. Threads that share the rows each start at their own:
  // SystematicDrawsBelow(the mass before their first row).
  SANTA_HOST_DEVICE SystematicCursor(const DrawGrid& grid, uint64_t offset, uint32_t draw = 0)
      : step_(grid.step), rest_(grid.rest), draws_(grid.draws) {
    const Quotient quotient = Divide(static_cast<uint64_t>(draw) * grid.rest + offset, grid.draws, grid.inverse);
    position_ = draw * grid.step + quotient.whole;
    fraction_ = quotient.rest;
  }

  SANTA_HOST_DEVICE uint64_t position() const { return position_; }

  SANTA_HOST_DEVICE void Advance() {
    position_ += step_;
    fraction_ += rest_;
    if (fraction_ >= draws_) {
      fraction_ -= draws_;
      ++position_;
    }
  }

 private:
  uint64_t step_;
  uint32_t rest_;
  uint32_t draws_;
  uint64_t position_;
  uint32_t fraction_;  // of position, in units of 1 / S
};

// How many of the S systematic draws lie below `cumulative` in [0, W]: ceil((S C - R) / W). For threads that each own a
// row; its count is SystematicDrawsBelow(C_i) - SystematicDrawsBelow(C_{i-1}), the same as the cursor's.
SANTA_HOST_DEVICE uint32_t SystematicDrawsBelow(const DrawGrid& grid, uint64_t cumulative, uint64_t offset) {
  // A guess in floating point is off by one at most; the exact positions put it right.
  const double guess =
      (static_cast<double>(grid.draws) * static_cast<double>(cumulative) - static_cast<double>(offset)) /
      static_cast<double>(grid.total);
  uint32_t below = guess <= 0 ? 0 : static_cast<uint32_t>(guess);
  if (below > grid.draws) below = grid.draws;
  while (below > 0 && DrawPosition(grid, below - 1, offset) >= cumulative) --below;
  while (below < grid.draws && DrawPosition(grid, below, offset) < cumulative) ++below;
  return below;
}

// The row that covers `position`: the first i with cumulative[i] > position. cumulative: inclusive sums [num_rows],
// not descending; position < cumulative[num_rows - 1].
SANTA_HOST_DEVICE int64_t RowAt(const uint64_t* cumulative, int64_t num_rows, uint64_t position) {
  int64_t low = 0;
  int64_t high = num_rows - 1;
  while (low < high) {
    const int64_t middle = low + (high - low) / 2;
    if (cumulative[middle] > position) {
      high = middle;
    } else {
      low = middle + 1;
    }
  }
  return low;
}

}  // namespace santa::sampling

#endif  // SANTA_KERNELS_SAMPLING_DRAWS_H_
