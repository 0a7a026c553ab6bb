// The tests that every backend must pass, against the fp64 reference. A backend's own test instantiates them:
//
//     INSTANTIATE_TEST_SUITE_P(Cpu, BackendSuite,
//                              ::testing::Values(BackendUnderTest{.name = "cpu", .make = MakeCpuBackend}), NameOf);
//
// and depends on //kernels/testing:backend_suite. Fixed seeds throughout: a backend passes always or never.
//
// The tests poison caches with NaN through Backend::Append, so a backend must store a NaN as some NaN.
#ifndef SANTA_KERNELS_TESTING_BACKEND_SUITE_H_
#define SANTA_KERNELS_TESTING_BACKEND_SUITE_H_

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "kernels/attention.h"

namespace santa::testing {

using BackendFactory =
    std::function<absl::StatusOr<std::unique_ptr<Backend>>(const KvLayout& layout, int32_t num_pages)>;

struct BackendUnderTest {
  std::string name;  // letters, digits and underscores
  BackendFactory make;
  // The same backend with other numbers of threads (or anything else that must not change an answer): every answer must
  // be bit-identical to make's.
  std::vector<BackendFactory> variants = {};
  // Error of an exact output before it is rounded to the io type, relative to the largest |v|. The default suits sums
  // in fp32; a backend that rounds softmax weights before it multiplies them with v adds that rounding.
  double exact_tolerance = 2e-5;
  // Error of lse, relative to the largest |score| or 1. The default suits scores and sums in fp32.
  double lse_tolerance = 2e-5;
  // The layout that the backend has nearest to one that a test asks for; null: it has them all.
  std::function<KvLayout(KvLayout)> nearest_layout = nullptr;
  // The type that the backend rounds queries to before it multiplies them with a cache of type `stored`; null: none.
  std::function<DType(DType stored)> query_type = nullptr;
  // The estimators that it has, of all its layouts' `sketch` and `key_order`.
  std::vector<Method> methods = {Method::kSanta,       Method::kStratified, Method::kSystematic,
                                 Method::kS2antaFlash, Method::kS2antaProp, Method::kCoordinated};
  Sketch sketch = Sketch::kNone;
  KeyOrder key_order = KeyOrder::kTokenMajor;
  // Of which of them standard errors leave out what rows differ by over a whole sequence (sampling::StepSums).
  std::vector<Method> tells_errors_by_steps_of = {kAllMethods.begin(), kAllMethods.end()};
  // Of which of them it tells none: they are NaN.
  std::vector<Method> tells_no_errors_of = {};

  // Why it cannot run on this machine; empty: it can. The tests then skip themselves.
  std::string missing = "";

  bool TellsErrorsByStepsOf(Method method) const {
    return std::find(tells_errors_by_steps_of.begin(), tells_errors_by_steps_of.end(), method) !=
           tells_errors_by_steps_of.end();
  }

  bool TellsErrorsOf(Method method) const {
    return std::find(tells_no_errors_of.begin(), tells_no_errors_of.end(), method) == tells_no_errors_of.end();
  }

  KvLayout Nearest(const KvLayout& layout) const {
    KvLayout nearest = nearest_layout ? nearest_layout(layout) : layout;
    nearest.sketch = sketch;
    nearest.key_order = key_order;
    return nearest;
  }
  // The same with keys in the other order, which has score draws too.
  BackendUnderTest FeatureMajor() const {
    BackendUnderTest other = *this;
    other.name += "_feature";
    other.key_order = KeyOrder::kFeatureMajor;
    return other;
  }
  // The same with a sketch, which is all that SKETCHED differs by.
  BackendUnderTest Sketched(Sketch with) const {
    BackendUnderTest other = *this;
    other.name += "_" + std::string(Name(with));
    other.methods = {Method::kSketched};
    other.sketch = with;
    return other;
  }
};

class BackendSuite : public ::testing::TestWithParam<BackendUnderTest> {
 protected:
  void SetUp() override {
    if (!GetParam().missing.empty()) GTEST_SKIP() << GetParam().missing;
  }
};

inline std::string NameOf(const ::testing::TestParamInfo<BackendUnderTest>& info) { return info.param.name; }

// What a failure message shows of the parameter.
inline void PrintTo(const BackendUnderTest& backend, std::ostream* stream) { *stream << backend.name; }

}  // namespace santa::testing

#endif  // SANTA_KERNELS_TESTING_BACKEND_SUITE_H_
