#include "kernels/reference/reference_backend.h"

#include <gtest/gtest.h>

#include "kernels/testing/backend_suite.h"

namespace santa::testing {

const BackendUnderTest kReference = {.name = "reference", .make = reference::MakeReferenceBackend};

// It keeps keys in one order, whichever is asked for: what is left to test are score draws, with one value stage of
// each kind.
BackendUnderTest WithScoreDraws() {
  BackendUnderTest backend = kReference.FeatureMajor();
  backend.methods = {Method::kSystematic, Method::kCoordinated};
  return backend;
}

INSTANTIATE_TEST_SUITE_P(Reference, BackendSuite,
                         ::testing::Values(kReference, WithScoreDraws(), kReference.Sketched(Sketch::kK4),
                                           kReference.Sketched(Sketch::kK4V4), kReference.Sketched(Sketch::kK8V8)),
                         NameOf);

}  // namespace santa::testing
