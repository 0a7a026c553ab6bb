// Which rows a whole GQA group reads: inclusion probabilities and one systematic draw, for COORDINATED and SKETCHED.
//
// Every row i of a group gets a probability pi_i of being read, by any scores s~ that are at hand (the exact ones, or a
// sketch's), and a row that is read counts 1 / pi_i times (Horvitz and Thompson, "A generalization of sampling without
// replacement from a finite universe", 1952). With p~[h,i] the softmax of s~[h]:
//
//     a_i  = sqrt(sum over the group's heads of p~[h,i]^2)
//     pi_i = min(1, kappa a_i + floor),  kappa such that sum_i pi_i is the sample count S
//
// Scores enter as codes: octaves (log2 units) below the largest score of a run of kCodeBlock tokens, rounded. What is
// computed of codes alone is the same whoever computes it; rounding changes what is read, never what is expected.
// kappa is solved for on a histogram of a_i, whose bins stand for their upper edge, so that sum_i pi_i is at most S; or
// about S, where some of the tokens stand for all (kernels/sampling/pilot.h).
//
// Probabilities are whole numbers in units of 2^-20. Laid end to end, row i covers [C_{i-1}, C_i) of a line; it is read
// where a multiple of 2^20 less the offset lies in that. At most S rows are, each at most once.
#ifndef SANTA_KERNELS_SAMPLING_INCLUSION_H_
#define SANTA_KERNELS_SAMPLING_INCLUSION_H_

#include <bit>
#include <cmath>
#include <cstdint>

#include "kernels/sampling/host_device.h"
#include "kernels/sampling/uniform.h"

namespace santa::sampling {

// Tokens at absolute multiples of kCodeBlock share the score that their codes are counted from.
inline constexpr int kCodeBlock = 64;

// How a score is kept: Code is uint16_t, 2^-11 octaves a step (0.03 %: as good as the score itself), or uint8_t, an
// eighth of an octave (for probabilities only). Both reach 32 octaves down; the last code stands for all below, and
// has no weight.
template <typename Code>
inline constexpr float kStepsPerOctave = sizeof(Code) == 2 ? 2048.0f : 8.0f;
template <typename Code>
inline constexpr Code kNoWeight = static_cast<Code>(~Code{0});

// score <= max, both in log2 units; score may be -inf.
template <typename Code>
SANTA_HOST_DEVICE Code EncodeScore(float max, float score) {
  const float steps = (max - score) * kStepsPerOctave<Code>;
  if (!(steps < static_cast<float>(kNoWeight<Code>) - 0.5f)) return kNoWeight<Code>;
#ifdef __CUDA_ARCH__
  return static_cast<Code>(__float2uint_rn(steps));
#else
  return static_cast<Code>(std::lrintf(steps));
#endif
}

// The weight that is left out of the sum where the code is kNoWeight: else 2^-CodeOctaves(code) of the block's largest.
template <typename Code>
SANTA_HOST_DEVICE float CodeOctaves(Code code) {
  return static_cast<float>(code) * (1.0f / kStepsPerOctave<Code>);
}

// a^2 goes into one of kInclusionBins bins, 16 an octave, from 2^-58 (and all below) to 2^6; a_i is at most sqrt(16).
inline constexpr int kInclusionBins = 1024;
inline constexpr uint32_t kFirstBin = (127u - 58u) << 4;

SANTA_HOST_DEVICE int InclusionBin(float a_squared) {
#ifdef __CUDA_ARCH__
  const int bin = static_cast<int>(__float_as_uint(a_squared) >> 19) - static_cast<int>(kFirstBin);
#else
  const int bin = static_cast<int>(std::bit_cast<uint32_t>(a_squared) >> 19) - static_cast<int>(kFirstBin);
#endif
  return bin < 0 ? 0 : bin >= kInclusionBins ? kInclusionBins - 1 : bin;
}

// At least the largest a_i of a bin, in units of 2^-40: sums of them are exact and do not depend on their order.
SANTA_HOST_DEVICE uint64_t BinTop(int bin) {
  const uint32_t edge = (kFirstBin + static_cast<uint32_t>(bin) + 1) << 19;
#ifdef __CUDA_ARCH__
  const float a = sqrtf(__uint_as_float(edge));
#else
  const float a = std::sqrt(std::bit_cast<float>(edge));
#endif
  const auto units = static_cast<uint64_t>(a * 0x1p40f);  // the root is rounded to the nearest
  return units + (units >> 23) + 1;
}

struct InclusionThreshold {
  float kappa = 0;
  float floor = 0;  // [0, 1)
};

// Makes every row with any weight certain.
inline constexpr double kMostKappa = 0x1p100;

// With `heavy` rows read for certain, `tail` the sum of BinTop over the others: the kappa that spends the budget. Where
// no others are left, the budget suffices for all.
SANTA_HOST_DEVICE double KappaFor(double budget, int64_t rows, double floor, int64_t heavy, uint64_t tail) {
  const double left = budget - static_cast<double>(heavy) - floor * static_cast<double>(rows - heavy);
  return tail == 0 ? kMostKappa : left / (static_cast<double>(tail) * 0x1p-40);
}

// Whether rows of bins below `bin` are all below certainty at that kappa.
SANTA_HOST_DEVICE bool AllBelowCertain(double kappa, double floor, int bin) {
  return bin == 0 || kappa * (static_cast<double>(BinTop(bin - 1)) * 0x1p-40) + floor <= 1;
}

// Rows that sum_i pi_i may come to: a little less than S, as every probability may be rounded up by 2^-20.
SANTA_HOST_DEVICE double InclusionBudget(uint32_t sample_count, int64_t rows) {
  const double budget = static_cast<double>(sample_count) - static_cast<double>(rows) * 0x1p-20;
  return budget > 0 ? budget : 0;
}

// The share of the sample that SKETCHED spends evenly over all rows, so that none that its sketch misjudges is left
// out: floor = share * S / rows.
inline constexpr double kEvenShare = 1.0 / 16;

// With a value sketch, a head's mass is what the sketch says of it and a correction by the rows that were read. Where
// that leaves less than this share of the sketch's, the sketch is no help: then the rows that were read stand alone.
inline constexpr double kLeastCorrectedMass = 1.0 / 16;

// counts: [kInclusionBins], summing to `rows` (>= 1), the rows with any weight. By the definition, one bin after the
// other from the top; who has many threads takes the highest bin that AllBelowCertain.
SANTA_HOST_DEVICE InclusionThreshold SolveThreshold(const uint32_t* counts, int64_t rows, double budget, double floor) {
  uint64_t tail = 0;
  for (int bin = 0; bin < kInclusionBins; ++bin) tail += counts[bin] * BinTop(bin);
  int64_t heavy = 0;
  int bin = kInclusionBins;
  double kappa = KappaFor(budget, rows, floor, heavy, tail);
  for (; !AllBelowCertain(kappa, floor, bin); kappa = KappaFor(budget, rows, floor, heavy, tail)) {
    --bin;
    heavy += counts[bin];
    tail -= counts[bin] * BinTop(bin);
  }
  return {static_cast<float>(kappa), static_cast<float>(floor)};
}

inline constexpr int kInclusionBits = 20;
inline constexpr uint32_t kCertain = 1u << kInclusionBits;

// pi_i in units of 2^-20, [0, kCertain]. A row without weight and floor is never read; any other may be.
SANTA_HOST_DEVICE uint32_t Inclusion(const InclusionThreshold& threshold, float a_squared) {
#ifdef __CUDA_ARCH__
  float a;
  asm("sqrt.approx.ftz.f32 %0, %1;" : "=f"(a) : "f"(a_squared));  // to the last place or one off
#else
  const float a = sqrtf(a_squared);
#endif
  const float pi = fmaf(threshold.kappa, a, threshold.floor);
#ifdef __CUDA_ARCH__
  const uint32_t units = __float2uint_rn(fminf(pi, 1.0f) * static_cast<float>(kCertain));  // without a branch
  return pi > 0 ? (units > 1 ? units : 1) : 0;
#else
  if (!(pi > 0)) return 0;
  if (pi >= 1) return kCertain;
  const auto units = static_cast<uint32_t>(std::lrintf(pi * static_cast<float>(kCertain)));
  return units == 0 ? 1 : units;
#endif
}

// Where the group's draw begins, [0, kCertain); draw 1 is the pilot of a target (target_error.h). stream:
// MakeRandomStream with the key/value head in place of the query head.
SANTA_HOST_DEVICE uint32_t InclusionOffset(const RandomStream& stream, uint32_t draw = 0) {
  return static_cast<uint32_t>(Random64(stream, Purpose::kInclusion, draw) >> (64 - kInclusionBits));
}

// Whether the row of that inclusion is read; before: the sum of the rows' before it.
SANTA_HOST_DEVICE bool IsIncluded(uint64_t before, uint32_t inclusion, uint32_t offset) {
  return ((before + inclusion + offset) >> kInclusionBits) != ((before + offset) >> kInclusionBits);
}

}  // namespace santa::sampling

#endif  // SANTA_KERNELS_SAMPLING_INCLUSION_H_
