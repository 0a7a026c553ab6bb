#include "kernels/cpu/row_kernels.h"

// The least that is compiled for is SSE4 (MakeCpuBackend refuses an x86 without it): Highway's own least is one lane at
// a time, which these loops do not support.
#define HWY_WANT_SSE4 1
// SSSE3 and AVX3_DL have nothing that these loops could use beyond SSE4 and AVX3.
#define HWY_DISABLED_TARGETS (HWY_SSSE3 | HWY_AVX3_DL)
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/row_kernels.cc"
#include "hwy/foreach_target.h"
#include "hwy/highway.h"
// These need the lines above.
#include "kernels/cpu/draws-inl.h"
#include "kernels/cpu/feature_products-inl.h"
#include "kernels/cpu/inclusions-inl.h"
#include "kernels/cpu/row_bf16_products-inl.h"
#include "kernels/cpu/row_products-inl.h"
#include "kernels/cpu/sketch_products-inl.h"
#include "kernels/cpu/sketch_values-inl.h"
#include "kernels/cpu/sketch_vnni_products-inl.h"
#include "kernels/cpu/softmax-inl.h"

HWY_BEFORE_NAMESPACE();
namespace santa::cpu {
namespace HWY_NAMESPACE {

template <typename Row>
constexpr RowKernels MakeTable() {
  return {
      .target = HWY_STR(HWY_NAMESPACE),
      .lanes = kLanes,
      .pack = Row::Pack,
      .pack_bf16 = nullptr,
      .unpack = Row::Unpack,
      .score = Score<Row>,
      .score_features = ScoreFeatures<Row>,
      .accumulate = Accumulate<Row>,
      .finish_scores = FinishScores,
      .exponentials = Exponentials<ExpOfNegative>,
      .rough_exponentials = Exponentials<RoughExpOfNegative>,
      .masses = Masses,
      .systematic_counts = SystematicCounts,
      .cumulate = Cumulate,
      .dots = Dots<Row>,
      .distances = Distances<Row>,
      .add_squares = AddSquares,
      .count_bins = CountBins,
      .inclusions = Inclusions,
      .draw_rows = DrawRows,
      .sketch_sums = SketchSums,
      .sketch_rows = SketchRows<Row>,
      .accumulate_packed = Accumulate<Fp32Row>,
      .dots_packed = Dots<Fp32Row>,
      .scale = Scale,
      .add_scaled = AddScaled,
  };
}

template <typename Row>
const RowKernels* Table() {
  static constexpr RowKernels kTable = MakeTable<Row>();
  return &kTable;
}

const RowKernels* Bf16Table() {
#if HWY_TARGET == HWY_AVX3
  static constexpr RowKernels kTable = [] {
    RowKernels table = MakeTable<Bf16Row>();
    table.target = HWY_STR(HWY_NAMESPACE) " with BF16";
    table.pack_bf16 = PackBf16;
    table.score = ScoreBf16;
    table.dots = DotsBf16;
    return table;
  }();
  if (__builtin_cpu_supports("avx512bf16")) return &kTable;
#endif
  return Table<Bf16Row>();
}

SketchScorer SketchScorerOf() {
#if HWY_TARGET == HWY_AVX3
  if (__builtin_cpu_supports("avx512vnni")) return ScoreSketchVnni;
#endif
  return ScoreSketch;
}

const RowKernels* TableOf(DType dtype) {
  switch (dtype) {
    case DType::kFloat32:
      return Table<Fp32Row>();
    case DType::kBFloat16:
      return Bf16Table();
    case DType::kFloat16:
    case DType::kFloat8E4M3:  // MakeCpuBackend refuses it
      break;
  }
  return Table<Fp16Row>();
}

}  // namespace HWY_NAMESPACE
}  // namespace santa::cpu
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace santa::cpu {

HWY_EXPORT(TableOf);
HWY_EXPORT(SketchScorerOf);

const RowKernels& GetRowKernels(DType dtype) { return *HWY_DYNAMIC_DISPATCH(TableOf)(dtype); }

SketchScorer GetSketchScorer() { return HWY_DYNAMIC_DISPATCH(SketchScorerOf)(); }

}  // namespace santa::cpu
#endif  // HWY_ONCE
