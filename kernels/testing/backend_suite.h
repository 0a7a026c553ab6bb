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
  std::string name;  // letters and digits
  BackendFactory make;
  // The same backend with other numbers of threads (or anything else that must not change an answer): every answer must
  // be bit-identical to make's.
  std::vector<BackendFactory> variants = {};
  // Error of an exact output before it is rounded to the io type, relative to the largest |v|; and of lse, relative to
  // the largest |score| or 1. The default suits scores and sums in fp32.
  double exact_tolerance = 2e-5;
};

class BackendSuite : public ::testing::TestWithParam<BackendUnderTest> {};

inline std::string NameOf(const ::testing::TestParamInfo<BackendUnderTest>& info) { return info.param.name; }

// What a failure message shows of the parameter.
inline void PrintTo(const BackendUnderTest& backend, std::ostream* stream) { *stream << backend.name; }

}  // namespace santa::testing

#endif  // SANTA_KERNELS_TESTING_BACKEND_SUITE_H_
