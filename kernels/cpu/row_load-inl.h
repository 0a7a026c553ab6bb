// Rows of K and V as vectors of fp32: two vectors at a time, in whichever order costs no shuffle. Each Row class says
// how it loads 2 * kLanes elements, and packs queries and unpacks sums to match.
#if defined(SANTA_KERNELS_CPU_ROW_LOAD_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef SANTA_KERNELS_CPU_ROW_LOAD_INL_H_
#undef SANTA_KERNELS_CPU_ROW_LOAD_INL_H_
#else
#define SANTA_KERNELS_CPU_ROW_LOAD_INL_H_
#endif

#include <algorithm>
#include <cstdint>

#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace santa::cpu {
namespace HWY_NAMESPACE {

namespace hn = hwy::HWY_NAMESPACE;

// Arrays of vectors need vectors of a fixed size: x86 and NEON, not SVE or RVV.
using FloatTag = hn::ScalableTag<float>;
using Vector = hn::Vec<FloatTag>;
inline constexpr int kLanes = HWY_LANES(float);
inline constexpr int kPair = 2 * kLanes;  // elements of one Load

// Scores of kLanes tokens, a vector a head, interleaved.
template <int kHeads>
HWY_INLINE void StoreTokens(const Vector* sums, float* scores) {
  const FloatTag d;
  if constexpr (kHeads == 1) {
    hn::StoreU(sums[0], d, scores);
  } else if constexpr (kHeads == 2) {
    hn::StoreInterleaved2(sums[0], sums[1], d, scores);
  } else if constexpr (kHeads == 3) {
    hn::StoreInterleaved4(sums[0], sums[1], sums[2], hn::Zero(d), d, scores);
  } else {
    hn::StoreInterleaved4(sums[0], sums[1], sums[2], sums[3], d, scores);
  }
}

// Elements in order: first half, second half.
struct LinearOrder {
  static void Pack(const float* vector, int head_dim, float* packed) {
    std::copy_n(vector, head_dim, packed);
    std::fill(packed + head_dim, packed + (head_dim + kPair - 1) / kPair * kPair, 0.0f);
  }
  static void Unpack(const float* packed, int head_dim, float factor, float* vector) {
    for (int i = 0; i < head_dim; ++i) vector[i] = packed[i] * factor;
  }
  // 2 * kLanes numbers in order, as the two vectors of a Load.
  static HWY_INLINE void LoadFloats(const float* vector, Vector& first, Vector& second) {
    first = hn::LoadU(FloatTag(), vector);
    second = hn::LoadU(FloatTag(), vector + kLanes);
  }
  // The two vectors of a Load, or what was made of them element by element, as numbers in order.
  static HWY_INLINE void ToOrder(Vector& /*first*/, Vector& /*second*/) {}
};

// Elements of even index, then those of odd index.
struct EvenOddOrder {
  static void Pack(const float* vector, int head_dim, float* packed) {
    for (int first = 0; first < head_dim; first += kPair, packed += kPair) {
      const int count = std::min(kPair, head_dim - first) / 2;
      for (int i = 0; i < count; ++i) {
        packed[i] = vector[first + 2 * i];
        packed[kLanes + i] = vector[first + 2 * i + 1];
      }
      std::fill(packed + count, packed + kLanes, 0.0f);
      std::fill(packed + kLanes + count, packed + kPair, 0.0f);
    }
  }
  static void Unpack(const float* packed, int head_dim, float factor, float* vector) {
    for (int first = 0; first < head_dim; first += kPair, packed += kPair) {
      const int count = std::min(kPair, head_dim - first) / 2;
      for (int i = 0; i < count; ++i) {
        vector[first + 2 * i] = packed[i] * factor;
        vector[first + 2 * i + 1] = packed[kLanes + i] * factor;
      }
    }
  }
  static HWY_INLINE void LoadFloats(const float* vector, Vector& even, Vector& odd) {
    hn::LoadInterleaved2(FloatTag(), vector, even, odd);
  }
  static HWY_INLINE void ToOrder(Vector& even, Vector& odd) {
    alignas(64) float numbers[kPair];
    hn::StoreInterleaved2(even, odd, FloatTag(), numbers);
    LinearOrder::LoadFloats(numbers, even, odd);
  }
};

struct Fp32Row : LinearOrder {
  static constexpr int kElementBytes = 4;

  static HWY_INLINE void Load(const uint8_t* row, Vector& first, Vector& second) {
    const FloatTag d;
    const float* elements = reinterpret_cast<const float*>(row);
    first = hn::LoadU(d, elements);
    second = hn::LoadU(d, elements + kLanes);
  }

  // The first `count` elements, 0 < count < kPair, and zeros. What lies beyond may be read but has no effect.
  static HWY_INLINE void LoadTail(const uint8_t* row, int count, Vector& first, Vector& second) {
    const FloatTag d;
    const float* elements = reinterpret_cast<const float*>(row);
    first = hn::MaskedLoad(hn::FirstN(d, std::min(count, kLanes)), d, elements);
    second = hn::MaskedLoad(hn::FirstN(d, std::max(count - kLanes, 0)), d, elements + kLanes);
  }
};

// A bf16 is the upper half of a fp32, so two neighbours in a 32-bit word need one shift and one mask.
struct Bf16Row : EvenOddOrder {
  static constexpr int kElementBytes = 2;

  static HWY_INLINE void Load(const uint8_t* row, Vector& even, Vector& odd) {
    Split(hn::LoadU(hn::RebindToUnsigned<FloatTag>(), reinterpret_cast<const uint32_t*>(row)), even, odd);
  }

  // count is even.
  static HWY_INLINE void LoadTail(const uint8_t* row, int count, Vector& even, Vector& odd) {
    const hn::RebindToUnsigned<FloatTag> du;
    Split(hn::MaskedLoad(hn::FirstN(du, count / 2), du, reinterpret_cast<const uint32_t*>(row)), even, odd);
  }

 private:
  static HWY_INLINE void Split(hn::Vec<hn::RebindToUnsigned<FloatTag>> words, Vector& even, Vector& odd) {
    const FloatTag d;
    even = hn::BitCast(d, hn::ShiftLeft<16>(words));
    odd = hn::BitCast(d, hn::And(words, hn::Set(hn::RebindToUnsigned<FloatTag>(), 0xFFFF0000u)));
  }
};

struct Fp16Row : LinearOrder {
  static constexpr int kElementBytes = 2;
  using HalfTag = hn::Rebind<hwy::float16_t, FloatTag>;
  using BitsTag = hn::Rebind<uint16_t, FloatTag>;

  static HWY_INLINE void Load(const uint8_t* row, Vector& first, Vector& second) {
    const BitsTag d;
    const uint16_t* elements = reinterpret_cast<const uint16_t*>(row);
    first = Promote(hn::LoadU(d, elements));
    second = Promote(hn::LoadU(d, elements + kLanes));
  }

  static HWY_INLINE void LoadTail(const uint8_t* row, int count, Vector& first, Vector& second) {
    const BitsTag d;
    const uint16_t* elements = reinterpret_cast<const uint16_t*>(row);
    first = Promote(hn::MaskedLoad(hn::FirstN(d, std::min(count, kLanes)), d, elements));
    second = Promote(hn::MaskedLoad(hn::FirstN(d, std::max(count - kLanes, 0)), d, elements + kLanes));
  }

 private:
  static HWY_INLINE Vector Promote(hn::Vec<BitsTag> bits) {
#if HWY_TARGET <= HWY_AVX2
    return hn::PromoteTo(FloatTag(), hn::BitCast(HalfTag(), bits));
#else
    // Highway's own emulation takes infinity and NaN for large numbers.
    const hn::RebindToUnsigned<FloatTag> du;
    const auto words = hn::PromoteTo(du, bits);
    const auto magnitude = hn::And(words, hn::Set(du, 0x7FFFu));
    const auto sign = hn::ShiftLeft<16>(hn::Xor(words, magnitude));
    // The bits of the fp16 where a fp32 has its own; the product moves the exponent's bias, subnormals included.
    const auto moved = hn::Mul(hn::BitCast(FloatTag(), hn::ShiftLeft<13>(magnitude)), hn::Set(FloatTag(), 0x1p112f));
    const auto special = hn::Or(hn::ShiftLeft<13>(magnitude), hn::Set(du, 0x7F800000u));
    const auto is_special =
        hn::Gt(hn::BitCast(hn::RebindToSigned<FloatTag>(), magnitude), hn::Set(hn::RebindToSigned<FloatTag>(), 0x7BFF));
    const auto bits32 = hn::IfThenElse(hn::RebindMask(du, is_special), special, hn::BitCast(du, moved));
    return hn::BitCast(FloatTag(), hn::Or(sign, bits32));
#endif
  }
};

}  // namespace HWY_NAMESPACE
}  // namespace santa::cpu
HWY_AFTER_NAMESPACE();

#endif  // SANTA_KERNELS_CPU_ROW_LOAD_INL_H_
