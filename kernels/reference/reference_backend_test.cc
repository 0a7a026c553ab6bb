#include "kernels/reference/reference_backend.h"

#include <gtest/gtest.h>

#include "kernels/testing/backend_suite.h"

namespace santa::testing {

const BackendUnderTest kReference = {
    .name = "reference", .make = reference::MakeReferenceBackend, .tells_errors_by_steps = true};

INSTANTIATE_TEST_SUITE_P(Reference, BackendSuite,
                         ::testing::Values(kReference, kReference.Sketched(Sketch::kK4),
                                           kReference.Sketched(Sketch::kK4V4), kReference.Sketched(Sketch::kK8V8)),
                         NameOf);

}  // namespace santa::testing
