// How many rows a group must read for a relative error that the caller asked for.
//
// The error of head h at inclusion probabilities pi is, but for a factor that the values decide,
//
//     F_h = sum_i (1 / pi_i - 1) p[h,i]^2
//
// A small first draw, kPilotSamples rows, tells the factor: it estimates both |o_h|^2 and its own error E_h, so that
// E_h / F_h(pilot) * F_h(kappa) is the error at another kappa. F_h is summed by bins of a_i (inclusion.h), so trying a
// kappa costs a pass over bins. The draw that follows has an offset of its own, so that what the first one happened to
// read decides how many rows are read, not which.
#ifndef SANTA_KERNELS_SAMPLING_TARGET_ERROR_H_
#define SANTA_KERNELS_SAMPLING_TARGET_ERROR_H_

#include <cmath>
#include <cstdint>

#include "kernels/sampling/host_device.h"
#include "kernels/sampling/inclusion.h"

namespace santa::sampling {

inline constexpr uint32_t kPilotSamples = 128;
// The standard error of a pilot's estimate is a tenth or so: this much below the target, an answer rarely is above it.
inline constexpr double kTargetMargin = 0.88;
// Rows in places of their own cost about twice what they cost in order: past this share of them all are read.
inline constexpr double kMostShare = 0.5;

// pi of a bin's rows, by their upper edge.
SANTA_HOST_DEVICE double BinChance(const InclusionThreshold& threshold, int bin) {
  const double pi = threshold.kappa * (static_cast<double>(BinTop(bin)) * 0x1p-40) + threshold.floor;
  return pi < 1 ? pi : 1;
}

// F_h; spreads: [kInclusionBins], sums of p[h,i]^2 of each bin's rows, of which there are counts.
SANTA_HOST_DEVICE double Spread(const InclusionThreshold& threshold, const uint32_t* counts, const float* spreads) {
  double sum = 0;
  for (int bin = 0; bin < kInclusionBins; ++bin) {
    if (counts[bin] > 0) sum += (1 / BinChance(threshold, bin) - 1) * spreads[bin];
  }
  return sum;
}

// Rows that are read in the mean.
SANTA_HOST_DEVICE double RowsAt(const InclusionThreshold& threshold, const uint32_t* counts) {
  double rows = 0;
  for (int bin = 0; bin < kInclusionBins; ++bin) {
    if (counts[bin] > 0) rows += counts[bin] * BinChance(threshold, bin);
  }
  return rows;
}

// The threshold of that kappa with the even share, if there is to be one.
SANTA_HOST_DEVICE InclusionThreshold ThresholdAt(double kappa, double even_share, const uint32_t* counts,
                                                 int64_t rows) {
  InclusionThreshold threshold = {static_cast<float>(kappa), 0};
  if (even_share > 0) {
    threshold.floor = static_cast<float>(even_share * RowsAt(threshold, counts) / static_cast<double>(rows));
  }
  return threshold;
}

// The smallest kappa at which F_h is at most limits[h] for every head. Reads all rows (kMostKappa, and a floor of 1
// with an even share) where that many would be read anyway. limits that are no numbers are passed over.
SANTA_HOST_DEVICE InclusionThreshold SolveTarget(const uint32_t* counts, int64_t rows, const float* spreads, int heads,
                                                 const double* limits, double even_share) {
  const auto reaches = [&](const InclusionThreshold& threshold) {
    for (int h = 0; h < heads; ++h) {
      if (Spread(threshold, counts, spreads + h * kInclusionBins) > limits[h]) return false;
    }
    return true;
  };
  double low = -10;  // log2 of kappa
  double high = 40;
  for (int step = 0; step < 12; ++step) {
    const double middle = (low + high) / 2;
    (reaches(ThresholdAt(std::exp2(middle), even_share, counts, rows)) ? high : low) = middle;
  }
  const InclusionThreshold threshold = ThresholdAt(std::exp2(high), even_share, counts, rows);
  if (RowsAt(threshold, counts) <= kMostShare * static_cast<double>(rows)) return threshold;
  return {static_cast<float>(kMostKappa), even_share > 0 ? 1.0f : 0.0f};
}

}  // namespace santa::sampling

#endif  // SANTA_KERNELS_SAMPLING_TARGET_ERROR_H_
