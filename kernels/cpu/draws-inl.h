// Where draws fall among the rows of a block.
#if defined(SANTA_KERNELS_CPU_DRAWS_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef SANTA_KERNELS_CPU_DRAWS_INL_H_
#undef SANTA_KERNELS_CPU_DRAWS_INL_H_
#else
#define SANTA_KERNELS_CPU_DRAWS_INL_H_
#endif

#include <cstdint>

#include "hwy/highway.h"
#include "kernels/cpu/fetch-inl.h"
#include "kernels/cpu/row_kernels.h"

HWY_BEFORE_NAMESPACE();
namespace santa::cpu {
namespace HWY_NAMESPACE {

namespace hn = hwy::HWY_NAMESPACE;

template <int kPitch>
HWY_INLINE void CumulateOf(const uint32_t* masses, int num_rows, uint64_t* sums) {
  const hn::CappedTag<uint64_t, kPitch> du64;
  const hn::Rebind<uint32_t, decltype(du64)> du32;
  for (int lane = 0; lane < kPitch; lane += static_cast<int>(hn::Lanes(du64))) {
    auto sum = hn::Zero(du64);
    for (int row = 0; row < num_rows; ++row) {
      sum = hn::Add(sum, hn::PromoteTo(du64, hn::LoadU(du32, masses + row * kPitch + lane)));
      hn::StoreU(sum, du64, sums + row * kPitch + lane);
    }
    for (int row = num_rows; row < kBlockRows; ++row) hn::StoreU(sum, du64, sums + row * kPitch + lane);
  }
}

inline void Cumulate(const uint32_t* masses, int num_rows, int pitch, uint64_t* sums) {
  if (pitch == 4) return CumulateOf<4>(masses, num_rows, sums);
  if (pitch == 2) return CumulateOf<2>(masses, num_rows, sums);
  CumulateOf<1>(masses, num_rows, sums);
}

// One vector of heads: lanes [lane, lane + Lanes) of a row.
template <int kPitch>
HWY_INLINE bool SystematicCountsOf(const SystematicArgs& args, float* counts, uint16_t* drawn) {
  const hn::CappedTag<double, kPitch> d;
  const hn::Rebind<int32_t, decltype(d)> di32;
  const hn::Rebind<float, decltype(d)> df32;
  const auto half = hn::Set(d, 0.5);
  for (int group = 0; group < kBlockRows / kRowGroup; ++group) drawn[group] = 0;
  // The largest distance of a value from the middle between two whole numbers: 0.5 at a whole number, where rounding
  // could decide the count.
  auto farthest = hn::Zero(d);
  const int64_t step = FetchStep(args.ahead, args.num_rows);
  for (int lane = 0; lane < kPitch; lane += static_cast<int>(hn::Lanes(d))) {
    const auto draws_per_mass = hn::LoadU(d, args.draws_per_mass + lane);
    const auto phase = hn::LoadU(d, args.phase + lane);
    // Sums of whole numbers up to 2^53: exact.
    auto sum = hn::LoadU(d, args.below + lane);
    const auto draws_below = [&]() HWY_ATTR {
      const auto exact = hn::MulSub(sum, draws_per_mass, phase);
      const auto ceiling = hn::Ceil(exact);
      farthest = hn::Max(farthest, hn::Abs(hn::Sub(hn::Sub(ceiling, exact), half)));
      return ceiling;
    };
    auto before = draws_below();
    for (int row = 0; row < args.num_rows; ++row) {
      if (lane == 0) PrefetchBytes(args.ahead.begin + row * step, step);
      const auto masses = hn::LoadU(di32, reinterpret_cast<const int32_t*>(args.masses) + row * kPitch + lane);
      sum = hn::Add(sum, hn::PromoteTo(d, masses));
      const auto now = draws_below();
      const auto count = hn::Sub(now, before);
      hn::StoreU(hn::DemoteTo(df32, count), df32, counts + row * kPitch + lane);
      const uint32_t any = hn::AllFalse(d, hn::Gt(count, hn::Zero(d))) ? 0 : 1;
      drawn[row / kRowGroup] = static_cast<uint16_t>(drawn[row / kRowGroup] | any << row % kRowGroup);
      before = now;
    }
  }
  // Far above what a few roundings of numbers up to 2^20 can come to.
  constexpr double kSure = 0.5 - 0x1p-24;
  return hn::AllTrue(d, hn::Lt(farthest, hn::Set(d, kSure)));
}

inline bool SystematicCounts(const SystematicArgs& args, float* counts, uint16_t* drawn) {
  if (args.pitch == 4) return SystematicCountsOf<4>(args, counts, drawn);
  if (args.pitch == 2) return SystematicCountsOf<2>(args, counts, drawn);
  return SystematicCountsOf<1>(args, counts, drawn);
}

}  // namespace HWY_NAMESPACE
}  // namespace santa::cpu
HWY_AFTER_NAMESPACE();

#endif  // SANTA_KERNELS_CPU_DRAWS_INL_H_
